"""The append-only log between the collector and the nightly part: `open_stream(url)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightschool.errors import ConfigError
from nightschool.stream.base import MAX_RECORD_BYTES, Offset, Record, StoredRecord, Stream, partition_of
from nightschool.stream.kafka_connection import KafkaSecurity

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightschool.stream.kafka_topics import Difference

__all__ = [
    "DEFAULT_WINDOW_MS",
    "MAX_RECORD_BYTES",
    "KafkaSecurity",
    "Offset",
    "Record",
    "StoredRecord",
    "Stream",
    "open_stream",
    "partition_of",
    "retention_warnings",
]

DEFAULT_PARTITIONS = 12
DEFAULT_WINDOW_MS = 30 * 24 * 3600 * 1000  # 30 days, the default of [night] outcome_window


def retention_warnings(stream: Stream) -> list[str]:
    """A sentence for each topic whose records may expire before a night reads them.

    A stream that keeps all records has none. `StreamUnavailable` when the cluster cannot be asked.
    """
    # Only Kafka expires records, and only its stream can be asked.
    ask: Callable[[], list[Difference]] | None = getattr(stream, "topic_differences", None)
    if ask is None:
        return []
    return [
        f"topic {one.topic} may lose records before a night reads them: {one.what} is {one.found}, it should be {one.planned};"
        f" repair it with: {one.repair}"
        for one in ask()
        if one.what in ("retention.ms", "cleanup.policy")
    ]


def open_stream(
    url: str,
    *,
    partitions: int = DEFAULT_PARTITIONS,
    security: KafkaSecurity | None = None,
    outcome_window_ms: int = DEFAULT_WINDOW_MS,
) -> Stream:
    """Open the stream at `url`; topics are created on first append with `partitions` partitions.

    `sqlite:PATH` is one file on this machine. `kafka://HOST:PORT[,HOST:PORT...]` is an Apache Kafka cluster, to which
    `security` logs in; a topic that is created there keeps its records longer than `outcome_window_ms`. `ConfigError`
    for another URL.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest:
        from nightschool.stream.sqlite import SqliteStream

        return SqliteStream(rest, partitions=partitions)
    if scheme == "kafka" and rest.startswith("//"):
        from nightschool.stream.kafka import KafkaStream

        return KafkaStream(
            rest.removeprefix("//").split(","), partitions=partitions, security=security, outcome_window_ms=outcome_window_ms
        )
    raise ConfigError(f"stream url {url!r} is not understood; allowed are 'sqlite:PATH' and 'kafka://HOST:PORT[,HOST:PORT...]'")
