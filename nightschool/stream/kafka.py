"""The stream on Apache Kafka.

It reads and administers through kafka-python, and writes through the fastest client that is installed. Nothing connects
before the first call, so a service starts while the brokers are away, and says so when it is asked to write. Reading
asks for exact offsets and uses no consumer group: only the night's manifest says what was read.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from threading import Lock
from types import TracebackType
from typing import Any, Protocol, Self

from nightschool.errors import MissingExtraError, StreamUnavailable
from nightschool.stream.base import Offset, Record, StoredRecord, check_sizes, check_topic, lost_range
from nightschool.stream.kafka_connection import KafkaConnection, KafkaSecurity
from nightschool.stream.kafka_limits import MAX_MESSAGE_BYTES
from nightschool.stream.kafka_topics import OUTCOME_WINDOW_MS, TOPICS, Difference, TopicState, differences, plan_of

try:
    import zstandard  # noqa: F401  kafka-python compresses and decompresses with it
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import OffsetOutOfRangeError

    from nightschool.stream.kafka_admin import KafkaAdmin
    from nightschool.stream.kafka_python import await_broker, client_settings, kafka_errors
except ModuleNotFoundError as missing:
    raise MissingExtraError("the Kafka stream", "kafka", missing.name or "kafka-python") from missing

READ_STALL_S = 30.0
"""How long a partition that has more records may give none before reading stops."""


class Writer(Protocol):
    """Makes records durable: `kafka_fast` or `kafka_plain`. Raises `StreamUnavailable` and `RecordError`."""

    @property
    def usable(self) -> bool:
        """False once this writer can never write again; then it must be replaced by another one."""
        ...

    def submit(self, topic: str, records: Sequence[Record]) -> Future[list[Offset]]:
        """Hand `records` over; the future is done when all are durable, or when one is refused."""
        ...

    def close(self) -> None:
        """Close at once, without waiting for what is not acknowledged."""
        ...


class KafkaStream:
    """A `Stream` on a Kafka cluster."""

    append_bytes = 16 << 20  # brokers take many appends at a time: this bounds the memory of one

    def __init__(
        self,
        bootstrap: Sequence[str],
        *,
        partitions: int,
        security: KafkaSecurity | None = None,
        outcome_window_ms: int = OUTCOME_WINDOW_MS,
        fast: bool | None = None,
    ) -> None:
        """`fast` chooses librdkafka (True) or kafka-python for writing; None takes librdkafka where it is installed."""
        self._connection = KafkaConnection.to(bootstrap, security)
        self._partitions, self._window_ms = partitions, outcome_window_ms
        self._fast = find_spec("confluent_kafka") is not None if fast is None else fast
        self._admin = KafkaAdmin(self._connection)
        self._writer_lock = Lock()
        self._current_writer: Writer | None = None
        self._created: set[str] = set()
        """Topics known to exist."""

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process makes its own connections."""
        connection = self._connection
        return partial(KafkaStream, partitions=self._partitions, security=connection.security, fast=self._fast), (
            connection.bootstrap,
        )

    # --- writing ------------------------------------------------------------------------------------------------------
    def create_topic(self, topic: str, *, partitions: int) -> None:
        check_topic(topic)
        num_brokers = self._admin.num_brokers()
        self._admin.create_topic(plan_of(topic, partitions=partitions, brokers=num_brokers, window_ms=self._window_ms))
        self._created.add(topic)

    def append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        return self.submit(topic, records).result()

    def submit(self, topic: str, records: Sequence[Record]) -> Future[list[Offset]]:
        """Like `append`, but return a future that is done once the records are durable or refused.

        What is known at once is raised at once. The first call for a topic may connect and create the topic, which
        takes time.
        """
        check_sizes(records)
        if topic not in self._created:
            self.create_topic(topic, partitions=self._partitions)
        future = self._writer().submit(topic, records)
        future.add_done_callback(lambda done: self._check_again(topic) if done.exception() else None)
        return future

    def _check_again(self, topic: str) -> None:
        """Make the next append ask whether the topic exists, as a failure may mean that it was deleted."""
        self._created.discard(topic)

    # --- reading ------------------------------------------------------------------------------------------------------
    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[StoredRecord]:
        first = self.start_offsets(topic).get(partition)
        if first is None:
            return
        if start < first:
            raise lost_range(topic, partition, start, first)
        end = min(end, self.end_offsets(topic)[partition])
        if start >= end:
            return
        with kafka_errors(self._connection), closing(self._consumer()) as consumer:
            at = TopicPartition(topic, partition)
            consumer.assign([at])
            consumer.seek(at, start)
            try:
                yield from _consume(consumer, at, end)
            except OffsetOutOfRangeError:  # the records expired while they were read
                raise lost_range(topic, partition, consumer.position(at), self.start_offsets(topic)[partition]) from None

    def start_offsets(self, topic: str) -> dict[int, int]:
        return self._admin.first_offsets(topic)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Where committed records end, so that an open transaction is never part of a night."""
        return self._admin.committed_offsets(topic)

    def topic_id(self, topic: str) -> str | None:
        found = self._admin.describe(topic).get("topic_id")
        return None if found is None else str(found)

    # --- administration -----------------------------------------------------------------------------------------------
    def topic_state(self, topic: str) -> TopicState | None:
        """How `topic` is set up now; None when it does not exist."""
        return self._admin.topic_state(topic)

    def topic_differences(self, topics: Iterable[str] = TOPICS) -> list[Difference]:
        """In what `topics` are not as a night needs them; a missing one is a difference too."""
        num_brokers = self._admin.num_brokers()
        found: list[Difference] = []
        for topic in topics:
            plan = plan_of(topic, partitions=self._partitions, brokers=num_brokers, window_ms=self._window_ms)
            found += differences(plan, self.topic_state(topic), bootstrap=str(self._connection))
        return found

    # --- clients ------------------------------------------------------------------------------------------------------
    def _writer(self) -> Writer:
        with self._writer_lock:
            writer = self._current_writer
            if writer is not None and not writer.usable:
                writer.close()
                writer = None
            if writer is None:
                await_broker(self._connection.bootstrap)
                writer = self._current_writer = self._new_writer()
            return writer

    def _new_writer(self) -> Writer:
        if self._fast:
            from nightschool.stream.kafka_fast import FastWriter

            return FastWriter(self._connection)
        from nightschool.stream.kafka_plain import PlainWriter

        return PlainWriter(self._connection)

    def _consumer(self) -> Any:
        await_broker(self._connection.bootstrap)
        return KafkaConsumer(
            **client_settings(self._connection),
            metrics_enabled=False,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
        )

    def close(self) -> None:
        with self._writer_lock:
            writer, self._current_writer = self._current_writer, None
        if writer is not None:
            writer.close()
        self._admin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _consume(consumer: Any, at: Any, end: int) -> Iterator[StoredRecord]:
    """Records up to `end`. The position also passes offsets without a record, such as the marks of a transaction."""
    progress = time.monotonic()
    while (position := consumer.position(at)) < end:
        for record in consumer.poll(timeout_ms=100).get(at, ()):
            if record.offset >= end:
                return
            yield _stored(at, record)
            progress = time.monotonic()
        if consumer.position(at) == position and time.monotonic() - progress > READ_STALL_S:
            raise StreamUnavailable(f"{at.topic!r} partition {at.partition} gave nothing for {READ_STALL_S:.0f} s at {position}")


def _stored(at: Any, record: Any) -> StoredRecord:
    """A record as read; one that another client wrote may have no key, no value or a header without a value."""
    headers = {name: value or b"" for name, value in record.headers}
    return StoredRecord(at.topic, at.partition, record.offset, record.timestamp, record.key or b"", record.value or b"", headers)
