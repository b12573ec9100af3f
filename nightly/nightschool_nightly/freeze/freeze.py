"""Step 1 of a night: freeze its input. From here on no wall clock and no unordered iteration decides anything."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from nightschool import semconv
from nightschool.config.redactors import redactors, subject_secrets
from nightschool.config.settings import Config, NightConfig
from nightschool.dtype import resolve_dtype
from nightschool.errors import DataLossError
from nightschool.machine import compute_threads, kv_cache_bytes, read_machine
from nightschool.registry.base_model import describe_base_model
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.ledger import LedgerEntry, ReadRange, in_lineage
from nightschool.registry.release import BaseModel
from nightschool.stream import Stream
from nightschool_nightly.freeze.manifest import FrozenRange, NightManifest
from nightschool_nightly.freeze.parent import verify_parent
from nightschool_nightly.freeze.serving_defaults import ServingDefaults, serving_defaults
from nightschool_nightly.freeze.settling import HOUR_MS, settling_of
from nightschool_nightly.rewards.rubric import Rubric

NO_MODEL = BaseModel("0" * 64, "0" * 64, "0" * 64)
"""Stands for the base model in the manifest of a night that only reads."""
_TOPICS = (semconv.TOPIC_SPANS, semconv.TOPIC_LOGS, semconv.TOPIC_OUTCOMES, semconv.TOPIC_ERASURE)
# Settings that say where files are kept and how many threads compute: the same night in another folder or on another
# machine is the same night.
_NOT_INPUT = {"state", "threads"}
_START_ANEW = "start a new night without --resume"


def freeze_tenant(
    config: Config,
    tenant: str,
    stream: Stream,
    *,
    registry: Registry,
    model: Path,
    rubrics: Mapping[str, Rubric],
    now_ms: int,
) -> NightManifest:
    """The manifest of a night that begins now on this machine, going on where the last night that ended had read to."""
    machine, dtype = read_machine(), resolve_dtype(config.model.dtype)
    pointer, nights = registry.pointer(tenant), registry.ledger(tenant).entries()
    base, pseudonyms = describe_base_model(model), pseudonyms_of(config, tenant)
    verify_parent(registry, tenant, pointer, base_model=base, dtype=dtype, max_rank=config.serving.max_lora_rank)
    return freeze_night(
        stream,
        tenant=tenant,
        settings=config.night,
        dtype=dtype,
        base_model=base,
        rubrics=rubrics,
        pointer=pointer,
        last=nights[-1] if nights else None,
        now_ms=now_ms,
        settles_after_ms=settling_of(config, rubrics),
        redaction=redaction_of(config, tenant),
        serving=serving_defaults(config.serving, model),
        threads=compute_threads(machine, config.night.threads, os.environ),
        kv_cache_bytes=kv_cache_bytes(machine, config.serving.kv_cache_gib),
        pseudonyms=pseudonyms,
        starts_over=has_other_pseudonyms(in_lineage(nights, pointer.stable), pseudonyms),
    )


def freeze_night(
    stream: Stream,
    *,
    tenant: str,
    settings: NightConfig,
    dtype: str,
    base_model: BaseModel,
    rubrics: Mapping[str, Rubric],
    pointer: Pointer,
    last: LedgerEntry | None,
    now_ms: int,
    settles_after_ms: Mapping[str, int] | None = None,
    redaction: str = "",
    serving: ServingDefaults | None = None,
    threads: int = 0,
    kv_cache_bytes: int = 0,
    pseudonyms: tuple[str, ...] = (),
    starts_over: bool = False,
) -> NightManifest:
    """Take the end offsets of every partition, once, and everything else that decides, as the night's manifest.

    `settles_after_ms` names the outcomes that a rubric reads and that must stand for a time before they count. Only
    when there are such outcomes does the time decide anything, and then only its hour: a night begun again within the
    hour is the same night.

    `last` is the last night that ended, if there is one: what it had read is not new, whatever it decided.
    `DataLossError` when a topic is gone, when it is not the topic that this night read, or when records that no night
    has read have expired.
    """
    seen = {(part.topic, part.partition): part for part in last.read} if last else {}
    ranges: list[FrozenRange] = []
    for topic in _TOPICS:
        # Ends before starts: a partition that is made between the two calls then has no end without a start.
        topic_id, ends, starts = stream.topic_id(topic) or "", stream.end_offsets(topic), stream.start_offsets(topic)
        for partition, end in sorted(ends.items()):
            before = seen.pop((topic, partition), None)
            found = FrozenRange(topic, topic_id, partition, starts[partition], before.end if before else starts[partition], end)
            if before:
                _check_continues(before, found)
            ranges.append(found)
    for part in seen.values():
        raise DataLossError(
            f"topic {part.topic} partition {part.partition}, which the last night read, is gone; restore the stream"
        )
    return NightManifest(
        tenant=tenant,
        ranges=tuple(ranges),
        settings={name: value for name, value in asdict(settings).items() if name not in _NOT_INPUT},
        dtype=dtype,
        base_model=base_model,
        rubrics={task: rubric.digest for task, rubric in sorted(rubrics.items())},
        pointer=pointer,
        frozen_at_ms=now_ms,
        redaction=redaction,
        serving=serving.to_json() if serving else {},
        threads=threads,
        kv_cache_bytes=kv_cache_bytes,
        pseudonyms=pseudonyms,
        starts_over=starts_over,
        settles_after_ms=dict(settles_after_ms or {}),
        as_of_ms=now_ms - now_ms % HOUR_MS if settles_after_ms else 0,
        previous_as_of_ms=last.as_of_ms if last and settles_after_ms else 0,
        ledger=last.digest if last else "",
        previous_frozen_ms=last.frozen_at_ms if last else 0,
    )


def redaction_of(config: Config, tenant: str) -> str:
    """Digest of the rules by which the tenant's records are redacted when read; empty where redaction is off."""
    redactor = redactors(config).get(tenant)
    return redactor.digest if redactor else ""


def pseudonyms_of(config: Config, tenant: str) -> tuple[str, ...]:
    """Digests of the secrets that make the tenant's pseudonyms, which say whether two nights have the same ones."""
    secrets = subject_secrets(tenant, config.tenant(tenant))
    return tuple(sorted(hashlib.sha256(f"pseudonyms/{tenant}/{secret}".encode()).hexdigest()[:16] for secret in secrets))


def has_other_pseudonyms(nights: Sequence[LedgerEntry], pseudonyms: Sequence[str]) -> bool:
    """Whether users may have other pseudonyms than in the `nights` that made the release: who trained cannot be told."""
    return bool(nights and set(pseudonyms) - {one for night in nights for one in night.pseudonyms})


def freeze_whole_stream(
    stream: Stream,
    *,
    tenant: str,
    now_ms: int = 0,
    last: NightManifest | None = None,
    settles_after_ms: Mapping[str, int] | None = None,
) -> NightManifest:
    """The manifest of a night that only reads: all of the stream, with default settings, without rubrics and model.

    For tools that look at episodes without a configuration, such as benchmarks and tests. `last` is a night before it,
    of which nothing is known but how far it read.
    """
    return freeze_night(
        stream,
        tenant=tenant,
        settings=NightConfig(),
        dtype="float32",
        base_model=NO_MODEL,
        rubrics={},
        pointer=Pointer(),
        last=entry_of(last, end="rejected") if last else None,
        now_ms=now_ms,
        settles_after_ms=settles_after_ms,
    )


def entry_of(manifest: NightManifest, *, end: str, release: str | None = None) -> LedgerEntry:
    """What the ledger says of a night that ended: how far it has read."""
    return LedgerEntry(
        night=manifest.digest,
        previous=manifest.ledger,
        end=end,
        release=release,
        parent=manifest.parent if release else None,
        read=tuple(ReadRange(part.topic, part.topic_id, part.partition, part.end) for part in manifest.ranges),
        as_of_ms=manifest.as_of_ms or manifest.frozen_at_ms,
        frozen_at_ms=manifest.frozen_at_ms,
        pseudonyms=manifest.pseudonyms,
    )


def check_unchanged(stream: Stream, ranges: Iterable[FrozenRange]) -> None:
    """`DataLossError` unless the stream still holds the records that were frozen: a night may be resumed days later."""
    for topic, parts in groupby(ranges, key=attrgetter("topic")):
        topic_id, ends, starts = stream.topic_id(topic), stream.end_offsets(topic), stream.start_offsets(topic)
        for part in parts:
            where = f"topic {topic} partition {part.partition}"
            if topic_id != part.topic_id or part.partition not in ends:
                raise DataLossError(
                    f"topic {topic} is not the one that was frozen (id {part.topic_id}, now {topic_id}); was it re-created? {_START_ANEW}"
                )
            if ends[part.partition] < part.end:
                raise DataLossError(
                    f"{where} ends at {ends[part.partition]}, but offsets up to {part.end} were frozen; {_START_ANEW}"
                )
            if starts[part.partition] > part.start:
                lost = f"offsets {part.start} to {min(starts[part.partition], part.end) - 1}"
                raise DataLossError(f"{where}: {lost} expired since they were frozen; {_START_ANEW}")


def _check_continues(before: ReadRange, now: FrozenRange) -> None:
    """`DataLossError` unless the records after those that the last night read are all there."""
    where = f"topic {now.topic} partition {now.partition}"
    if before.topic_id != now.topic_id:
        raise DataLossError(
            f"topic {now.topic} is not the one the last night read (id {before.topic_id}, now {now.topic_id}); was it re-created?"
        )
    if now.new_from > now.end:
        raise DataLossError(f"{where} ends at {now.end}, before offset {now.new_from} that was already read")
    if now.new_from < now.start:
        lost = f"offsets {now.new_from} to {now.start - 1}"
        raise DataLossError(f"{where}: {lost} expired before any night read them; raise the retention")
