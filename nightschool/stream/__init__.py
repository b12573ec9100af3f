"""The append-only log between collector and nightly: `open_stream(url)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightschool.errors import ConfigError
from nightschool.stream.base import MAX_RECORD_BYTES, Offset, Record, StoredRecord, Stream, partition_of
from nightschool.stream.kafka_connection import KafkaSecurity

if TYPE_CHECKING:
    from nightschool.config import StreamConfig

__all__ = [
    "MAX_RECORD_BYTES",
    "KafkaSecurity",
    "Offset",
    "Record",
    "StoredRecord",
    "Stream",
    "open_configured",
    "open_stream",
    "partition_of",
]

DEFAULT_PARTITIONS = 12


def open_configured(settings: StreamConfig) -> Stream:
    """Open the stream that [stream] of nightschool.toml describes."""
    return open_stream(settings.url, partitions=settings.partitions, security=settings.security())


def open_stream(url: str, *, partitions: int = DEFAULT_PARTITIONS, security: KafkaSecurity | None = None) -> Stream:
    """Open the stream at `url`; topics are created on first append with `partitions` partitions.

    `sqlite:PATH` is one file on this machine, `kafka://HOST:PORT[,HOST:PORT...]` an Apache Kafka cluster, entered as `security` says.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest:
        from nightschool.stream.sqlite import SqliteStream

        return SqliteStream(rest, partitions=partitions)
    if scheme == "kafka" and rest.startswith("//"):
        from nightschool.stream.kafka import KafkaStream

        return KafkaStream(rest.removeprefix("//").split(","), partitions=partitions, security=security)
    raise ConfigError(f"stream url {url!r} is not understood; allowed are 'sqlite:PATH' and 'kafka://HOST:PORT[,HOST:PORT...]'")
