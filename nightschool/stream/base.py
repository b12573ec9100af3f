"""The stream: an append-only log of topics, partitions and offsets, as Apache Kafka has them.

There are two implementations of this protocol, SQLite (one file, the default) and Kafka. One conformance suite
(`tests/nightschool/stream/test_stream_conformance.py`) checks both by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from nightschool.errors import ConfigError, DataLossError, RecordError

MAX_RECORD_BYTES = 8_000_000
"""Of key, value and headers together; below the max.message.bytes of our Kafka topics, which is 8 MiB."""
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class Record:
    """One record to append."""

    key: bytes
    """Decides the partition (see `partition_of`); for spans it is the trace id in lowercase hex."""
    value: bytes
    headers: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One record as read back."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """When the stream made it durable (log-append time), in milliseconds since 1970."""
    key: bytes
    value: bytes
    headers: Mapping[str, bytes]


class Offset(NamedTuple):
    """Where an appended record is."""

    partition: int
    offset: int


class Stream(Protocol):
    """An append-only log.

    Threads may share one stream. Errors: `StreamUnavailable` when nothing of the call was acknowledged and it may be
    tried again, `DataLossError` for offsets that no longer exist, `RecordError` for a record larger than
    `MAX_RECORD_BYTES`, and `StreamError` for everything else.
    """

    @property
    def append_bytes(self) -> int:
        """Whoever appends more than this does so in several goes: in one, it would hold other appends up."""
        ...

    def create_topic(self, topic: str, *, partitions: int) -> None:
        """Create `topic` unless it exists; an existing one keeps its partitions. `append` creates what is missing."""
        ...

    def append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        """Append `records` in order. Returns where each is, and only after all of them are durable."""
        ...

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[StoredRecord]:
        """Yield the records of `partition` with `start <= offset < end` in order; offsets may have gaps.

        Stops at the end of the partition if that comes first; an unknown topic or partition has no records.
        """
        ...

    def start_offsets(self, topic: str) -> dict[int, int]:
        """The first offset still held, per partition. An unknown topic has no partitions."""
        ...

    def end_offsets(self, topic: str) -> dict[int, int]:
        """One past the last offset, per partition. An unknown topic has no partitions."""
        ...

    def topic_id(self, topic: str) -> str | None:
        """An id that changes when a topic is deleted and created again; None for an unknown topic."""
        ...

    def close(self) -> None:
        """Close every connection and file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of `key` as in Sarama and the OpenTelemetry Collector: FNV-1a 32, signed, absolute, modulo."""
    digest = 0x811C9DC5
    for byte in key:
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    signed = digest - (1 << 32) if digest & 0x80000000 else digest
    return abs(signed) % partitions


def check_topic(topic: str) -> str:
    """Return `topic` if it is a legal Kafka topic name, else raise `ConfigError`."""
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ConfigError(f"topic {topic!r} is not a topic name; allowed are 1 to 249 letters, digits, '.', '_' and '-'")
    return topic


def check_sizes(records: Sequence[Record]) -> None:
    """Raise `RecordError` if a record is larger than any stream can hold."""
    for record in records:
        size = len(record.key) + len(record.value) + sum(len(name) + len(value) for name, value in record.headers.items())
        if size > MAX_RECORD_BYTES:
            raise RecordError(f"a record has {size} bytes; at most {MAX_RECORD_BYTES} are allowed: split it before appending")


def lost_range(topic: str, partition: int, start: int, first: int) -> DataLossError:
    """The error of asking for offsets from `start` when the first one still held is `first`."""
    return DataLossError(
        f"offsets {start} to {first - 1} of {topic!r} partition {partition} are gone; the first still held is {first}."
        " They expired before they were read: keep records longer, or read more often"
    )
