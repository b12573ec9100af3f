"""The stream on Apache Kafka, through kafka-python.

Nothing connects before the first call, so a service starts while the brokers are away and says so when it is asked to write.
Reading takes exact offsets without a consumer group: what was read is known by the night's manifest alone.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from threading import Lock
from types import TracebackType
from typing import Any, Self

from nightschool.errors import ConfigError, MissingExtraError, RecordError, StreamUnavailable
from nightschool.stream.base import Offset, Record, StoredRecord, check_sizes, check_topic, lost_range, partition_of

try:
    import zstandard  # noqa: F401  the producer compresses with it
    from kafka import IsolationLevel, KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetSpec, TopicPartition
    from kafka.errors import (
        InvalidTopicError,
        KafkaError,
        MessageSizeTooLargeError,
        NodeNotReadyError,
        OffsetOutOfRangeError,
        TopicAlreadyExistsError,
        UnknownTopicOrPartitionError,
    )
    from kafka.partitioner import Partitioner
except ImportError as missing:
    raise MissingExtraError("the Kafka stream", "kafka", missing.name or "kafka-python") from missing

_DAY_MS = 24 * 3600 * 1000
MAX_MESSAGE_BYTES = 8 << 20
REPLICAS = 3
CONNECT_TIMEOUT_MS = 5_000
# The official OTLP exporter gives a batch up after 10 s: a clear "try again" before that beats a late acknowledgement.
DELIVERY_TIMEOUT_MS = 9_000
REQUEST_TIMEOUT_MS = 5_000
LINGER_MS = 5
BATCH_BYTES = 512 << 10
READ_STALL_S = 30.0


class TracePartitioner(Partitioner):  # type: ignore[misc]  # kafka-python has no types
    """The partitioner of `partition_of`, so that our records stand where the OpenTelemetry Collector would put them."""

    def partition(self, topic: str, key: Any, serialized_key: bytes, value: Any, serialized_value: Any, cluster: Any) -> int:
        return partition_of(serialized_key, len(cluster.partitions_for_topic(topic)))


class KafkaStream:
    """A `Stream` on a Kafka cluster."""

    def __init__(self, bootstrap: Sequence[str], *, partitions: int) -> None:
        self._bootstrap = [server for server in (server.strip() for server in bootstrap) if server]
        if not self._bootstrap or not all(re.fullmatch(r".+:\d{1,5}", server) for server in self._bootstrap):
            raise ConfigError(f"kafka://{','.join(bootstrap)} names no broker; write kafka://HOST:PORT[,HOST:PORT...]")
        self._partitions = partitions
        self._lock, self._admin_lock = Lock(), Lock()
        self._clients: dict[str, Any] = {}
        self._created: set[str] = set()

    # --- writing ---------------------------------------------------------------------------------------------------------
    def create_topic(self, topic: str, *, partitions: int) -> None:
        check_topic(topic)
        with self._errors():
            brokers = len(self._ask(lambda admin: admin.describe_cluster())["brokers"])
            wanted = {
                "num_partitions": partitions,
                "replication_factor": min(REPLICAS, brokers),
                "configs": topic_settings(topic, brokers=brokers),
            }
            with suppress(TopicAlreadyExistsError):
                self._ask(lambda admin: admin.create_topics({topic: wanted}))
            self._ask(lambda admin: admin.wait_for_topics([topic], timeout_ms=CONNECT_TIMEOUT_MS))
        self._created.add(topic)

    def append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        check_sizes(records)
        if topic not in self._created:
            self.create_topic(topic, partitions=self._partitions)
        with self._errors():
            producer = self._producer()
            try:
                sent = [producer.send(topic, r.value, key=r.key, headers=list(r.headers.items())) for r in records]
                deadline = time.monotonic() + (DELIVERY_TIMEOUT_MS + LINGER_MS) / 1000
                stored = [future.get(timeout=max(0.0, deadline - time.monotonic())) for future in sent]
            except KafkaError:
                self._created.discard(topic)  # it may have been deleted; looking again costs one request
                self._discard(producer)
                raise
        return [Offset(one.partition, one.offset) for one in stored]

    # --- reading ---------------------------------------------------------------------------------------------------------
    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[StoredRecord]:
        first = self.start_offsets(topic).get(partition)
        if first is None:
            return
        if start < first:
            raise lost_range(topic, partition, start, first)
        end = min(end, self.end_offsets(topic)[partition])
        if start >= end:
            return
        with self._errors(), closing(self._consumer()) as consumer:
            at = TopicPartition(topic, partition)
            consumer.assign([at])
            consumer.seek(at, start)
            try:
                yield from _consume(consumer, at, end)
            except OffsetOutOfRangeError:  # it expired while we read
                raise lost_range(topic, partition, consumer.position(at), self.start_offsets(topic)[partition]) from None

    def start_offsets(self, topic: str) -> dict[int, int]:
        return self._offsets(topic, OffsetSpec.EARLIEST)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Where committed records end, so that an open transaction is never part of a night."""
        return self._offsets(topic, OffsetSpec.LATEST)

    def _offsets(self, topic: str, spec: Any) -> dict[int, int]:
        with self._errors():
            wanted = {TopicPartition(topic, one["partition_index"]): spec for one in self._describe(topic).get("partitions", ())}
            if not wanted:
                return {}
            committed = IsolationLevel.READ_COMMITTED
            found = self._ask(lambda admin: admin.list_partition_offsets(wanted, isolation_level=committed))
        return {at.partition: found[at].offset for at in sorted(wanted)}

    def topic_id(self, topic: str) -> str | None:
        with self._errors():
            found = self._describe(topic).get("topic_id")
        return None if found is None else str(found)

    def _describe(self, topic: str) -> dict[str, Any]:
        """The broker's description of `topic`; empty for an unknown topic."""
        described: dict[str, Any] = self._ask(lambda admin: admin.describe_topics([topic])[0])
        if described["error_code"] in (UnknownTopicOrPartitionError.errno, InvalidTopicError.errno):
            return {}
        return described

    # --- clients ---------------------------------------------------------------------------------------------------------
    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """Put one question at a time to the admin client: it refuses, not queues, when busy or while it connects."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_MS / 1000
        if not self._admin_lock.acquire(timeout=CONNECT_TIMEOUT_MS / 1000):
            raise StreamUnavailable(f"Kafka at {','.join(self._bootstrap)} does not answer, try again")
        try:
            admin = self._client("admin", lambda: KafkaAdminClient(**self._connection()))
            while True:
                try:
                    return question(admin)
                except NodeNotReadyError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
        finally:
            self._admin_lock.release()

    def _producer(self) -> Any:
        return self._client(
            "producer",
            lambda: KafkaProducer(
                **self._connection(),
                metrics_enabled=False,
                acks="all",
                enable_idempotence=True,
                compression_type="zstd",
                linger_ms=LINGER_MS,
                batch_size=BATCH_BYTES,
                max_request_size=MAX_MESSAGE_BYTES,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                max_block_ms=CONNECT_TIMEOUT_MS,
                allow_auto_create_topics=False,  # the broker's own settings would lose records early
                partitioner=TracePartitioner(),
            ),
        )

    def _consumer(self) -> Any:
        return KafkaConsumer(
            **self._connection(),
            metrics_enabled=False,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
        )

    def _connection(self) -> dict[str, Any]:
        """Settings of every client, once a broker listens: a client that finds none leaves its thread behind."""
        _await_any(self._bootstrap)
        return {
            "bootstrap_servers": self._bootstrap,
            "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            "reconnect_backoff_max_ms": 1_000,
        }

    def _client(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._clients:
                self._clients[name] = make()
            return self._clients[name]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except MessageSizeTooLargeError as error:
            raise RecordError(f"Kafka refuses a record as too large, split it before appending: {error}") from error
        except KafkaError as error:
            raise StreamUnavailable(
                f"Kafka at {','.join(self._bootstrap)} cannot be used now, try again: {type(error).__name__}: {error}"
            ) from error

    def _discard(self, producer: Any) -> None:
        """Give up a producer that failed: one that let a batch expire never sends again (kafka-python 3.0.12)."""
        with self._lock:
            if self._clients.get("producer") is not producer:
                return  # another thread has done it
            del self._clients["producer"]
        _close(producer)

    def close(self) -> None:
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            _close(client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _close(client: Any) -> None:
    """Close at once. What a producer still holds was never acknowledged, and waiting for it may take forever."""
    if isinstance(client, KafkaProducer):
        client._sender.force_close()  # its close() first waits for every batch, also for those that will never be sent
    client.close()


def _await_any(bootstrap: Sequence[str]) -> None:
    refusals = []
    for server in bootstrap:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_MS / 1000).close()
        except OSError as error:
            refusals.append(f"{server}: {error}")
        else:
            return
    raise StreamUnavailable(f"no Kafka broker can be reached, try again ({'; '.join(refusals)})")


def topic_settings(topic: str, *, brokers: int) -> dict[str, str]:
    """Settings of a new topic. Spans outlive the 30 days in which an outcome may come; outcomes are never compacted."""
    kind = topic.rpartition(".")[2]
    days = {"outcomes": 90, "dlq": 14}.get(kind, 32)
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(days * _DAY_MS),
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
        "compression.type": "zstd",
        "min.insync.replicas": "2" if brokers >= REPLICAS else "1",
    }


def _consume(consumer: Any, at: Any, end: int) -> Iterator[StoredRecord]:
    """Records up to `end`; the position also passes what is no record, such as the marks of a transaction."""
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
    """What another client wrote may lack a key, a value or a header's value."""
    headers = {name: value or b"" for name, value in record.headers}
    return StoredRecord(at.topic, at.partition, record.offset, record.timestamp, record.key or b"", record.value or b"", headers)
