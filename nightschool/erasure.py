"""Erasures: the users that a tenant's nights must forget, as records of the topic `ns.erasure`.

Single records of a log cannot be deleted, so an erasure is one more record, and every read that leads to training
applies it. It holds a hash of the subject, not the pseudonym. It is in force until it is taken back, also for what
arrives later, because an exporter may still hold spans of yesterday. The topic is compacted: the newest record of a
subject is its state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from nightschool import semconv
from nightschool.errors import RecordError, shown
from nightschool.stream import Record, StoredRecord, Stream

CONTENT_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Erasure:
    """Whether one subject is to be forgotten."""

    subject_hash: str
    requested_at_ms: int
    """When it was asked for, in milliseconds since 1970. For people to read; nothing depends on it."""
    scope: Literal["all", "none"] = "all"
    """"all" forgets everything of the subject, "none" takes an erasure back."""


def hash_prefix(tenant: str) -> str:
    """What is hashed before the subject; the nightly join uses it to hash a million subjects inside its database."""
    return f"erasure/{tenant}/"


def hash_subject(tenant: str, subject: str) -> str:
    """What an erasure holds in place of the subject (the pseudonym that is on the spans): 64 hex digits."""
    return hashlib.sha256(f"{hash_prefix(tenant)}{subject}".encode()).hexdigest()


def to_record(tenant: str, erasure: Erasure) -> Record:
    """The erasure as the stream holds it."""
    value = {"subject_hash": erasure.subject_hash, "requested_at": erasure.requested_at_ms, "scope": erasure.scope}
    headers = {
        semconv.HEADER_TENANT: tenant.encode(),
        semconv.HEADER_SCHEMA: semconv.SCHEMA.encode(),
        semconv.HEADER_CONTENT_TYPE: CONTENT_TYPE.encode(),
    }
    return Record(f"{tenant}/{erasure.subject_hash}".encode(), json.dumps(value, sort_keys=True).encode(), headers)


def request_erasure(stream: Stream, tenant: str, erasures: Iterable[Erasure]) -> None:
    """Write erasures; they are durable when this returns."""
    stream.create_topic(semconv.TOPIC_ERASURE, partitions=1)
    stream.append(semconv.TOPIC_ERASURE, [to_record(tenant, erasure) for erasure in erasures])


def read_erasures(records: Iterable[StoredRecord], tenant: str) -> Mapping[str, Erasure]:
    """The state of every subject of `tenant`, by its hash; `RecordError` for a record that cannot be understood.

    An erasure that cannot be read may be about any user, so no night goes on without it.
    """
    found: dict[str, Erasure] = {}
    for record in records:
        if record.key.startswith(f"{tenant}/".encode()):
            erasure = _parse(record)
            found[erasure.subject_hash] = erasure
    return found


def stored_erasures(stream: Stream, tenant: str, *, before: Mapping[int, int] | None = None) -> Mapping[str, Erasure]:
    """The erasures of `tenant` in the stream now, or up to the end offset of each partition in `before`."""
    ends = stream.end_offsets(semconv.TOPIC_ERASURE) if before is None else before
    starts = stream.start_offsets(semconv.TOPIC_ERASURE)
    found: dict[str, Erasure] = {}
    for partition, end in sorted(ends.items()):
        start = starts.get(partition, 0)
        found.update(read_erasures(stream.read(semconv.TOPIC_ERASURE, partition, start, end), tenant))
    return found


def _parse(record: StoredRecord) -> Erasure:
    try:
        raw = json.loads(record.value)
        erasure = Erasure(raw["subject_hash"], raw["requested_at"], raw["scope"])
        if type(erasure.subject_hash) is not str or type(erasure.requested_at_ms) is not int:
            raise TypeError("subject_hash is a string and requested_at a whole number")
        if erasure.scope not in ("all", "none"):
            raise ValueError(f"scope is {shown(erasure.scope)}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecordError(
            f"{record.topic} partition {record.partition} offset {record.offset} is not an erasure ({error}), and no night may ignore"
            " one: write the subject's erasure again under the same key"
        ) from None
    return erasure
