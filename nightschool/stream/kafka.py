"""The stream on Apache Kafka: reading and administration through kafka-python, writing through the fastest client there is.

Nothing connects before the first call, so a service starts while the brokers are away and says so when it is asked to write.
Reading takes exact offsets without a consumer group: what was read is known by the night's manifest alone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from threading import Lock
from types import TracebackType
from typing import Any, Protocol, Self

from nightschool.errors import MissingExtraError, RecordError, StreamUnavailable
from nightschool.stream.base import Offset, Record, StoredRecord, check_sizes, check_topic, lost_range
from nightschool.stream.kafka_connection import KafkaConnection, KafkaSecurity
from nightschool.stream.kafka_limits import CONNECT_TIMEOUT_MS, MAX_MESSAGE_BYTES, REQUEST_TIMEOUT_MS
from nightschool.stream.kafka_topics import OUTCOME_WINDOW_MS, TOPICS, Difference, TopicState, differences, plan_of

try:
    import zstandard  # noqa: F401  kafka-python compresses and decompresses with it
    from kafka import IsolationLevel, KafkaAdminClient, KafkaConsumer, OffsetSpec, TopicPartition
    from kafka.admin import ConfigResource, ConfigResourceType
    from kafka.errors import (
        InvalidTopicError,
        KafkaError,
        MessageSizeTooLargeError,
        NodeNotReadyError,
        OffsetOutOfRangeError,
        TopicAlreadyExistsError,
        UnknownTopicOrPartitionError,
    )
except ModuleNotFoundError as missing:
    raise MissingExtraError("the Kafka stream", "kafka", missing.name or "kafka-python") from missing

READ_STALL_S = 30.0


class Writer(Protocol):
    """What makes records durable: `kafka_fast` or `kafka_plain`. Raises `StreamUnavailable` and `RecordError`."""

    @property
    def usable(self) -> bool:
        """False once this writer can never write again and another must take its place."""
        ...

    def submit(self, topic: str, records: Sequence[Record]) -> Future[list[Offset]]: ...

    def close(self) -> None: ...


class KafkaStream:
    """A `Stream` on a Kafka cluster."""

    def __init__(
        self,
        bootstrap: Sequence[str],
        *,
        partitions: int,
        security: KafkaSecurity | None = None,
        outcome_window_ms: int = OUTCOME_WINDOW_MS,
        fast: bool | None = None,
    ) -> None:
        """`fast` chooses librdkafka or kafka-python for writing; None takes librdkafka where it is installed."""
        self._connection = KafkaConnection.to(bootstrap, security)
        self._partitions, self._window_ms = partitions, outcome_window_ms
        self._fast = find_spec("confluent_kafka") is not None if fast is None else fast
        self._lock, self._admin_lock = Lock(), Lock()
        self._clients: dict[str, Any] = {}
        self._created: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process connects for itself."""
        connection = self._connection
        return partial(KafkaStream, partitions=self._partitions, security=connection.security, fast=self._fast), (
            connection.bootstrap,
        )

    # --- writing ---------------------------------------------------------------------------------------------------------
    def create_topic(self, topic: str, *, partitions: int) -> None:
        check_topic(topic)
        with self._errors():
            plan = plan_of(topic, partitions=partitions, brokers=self._brokers(), window_ms=self._window_ms)
            wanted = {
                "num_partitions": plan.partitions,
                "replication_factor": plan.replicas,
                "configs": dict(plan.settings),
            }
            with suppress(TopicAlreadyExistsError):
                self._ask(lambda admin: admin.create_topics({topic: wanted}))
            self._ask(lambda admin: admin.wait_for_topics([topic], timeout_ms=CONNECT_TIMEOUT_MS))
        self._created.add(topic)

    def append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        return self.submit(topic, records).result()

    def submit(self, topic: str, records: Sequence[Record]) -> Future[list[Offset]]:
        """Like `append`, but returns once the records are handed over; the future is done when they are durable or refused.

        Raises at once what is known at once. May connect and create the topic first, so the first call for a topic takes time.
        """
        check_sizes(records)
        if topic not in self._created:
            self.create_topic(topic, partitions=self._partitions)
        future = self._writer().submit(topic, records)
        future.add_done_callback(lambda done: self._look_again(topic) if done.exception() else None)
        return future

    def _look_again(self, topic: str) -> None:
        """After a failure the topic may have been deleted; looking costs one request."""
        self._created.discard(topic)

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

    # --- administration --------------------------------------------------------------------------------------------------
    def topic_state(self, topic: str) -> TopicState | None:
        """How `topic` is set up now; None when it does not exist."""
        with self._errors():
            described = self._describe(topic)
            if not described:
                return None
            asked = [ConfigResource(ConfigResourceType.TOPIC, topic)]
            answer = self._ask(lambda admin: admin.describe_configs(asked, config_filter="all"))
        settings = {name: str(entry["value"]) for name, entry in next(iter(answer.values()))[topic].items()}
        parts = described["partitions"]
        return TopicState(len(parts), min((len(part["replica_nodes"]) for part in parts), default=0), settings)

    def topic_differences(self, topics: Iterable[str] = TOPICS) -> list[Difference]:
        """In what `topics` are not as a night needs them; a missing one is a difference too."""
        with self._errors():
            brokers = self._brokers()
        found: list[Difference] = []
        for topic in topics:
            plan = plan_of(topic, partitions=self._partitions, brokers=brokers, window_ms=self._window_ms)
            found += differences(plan, self.topic_state(topic), bootstrap=str(self._connection))
        return found

    def _brokers(self) -> int:
        return len(self._ask(lambda admin: admin.describe_cluster())["brokers"])

    # --- clients ---------------------------------------------------------------------------------------------------------
    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """Put one question at a time to the admin client: it refuses, not queues, when busy or while it connects."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_MS / 1000
        if not self._admin_lock.acquire(timeout=CONNECT_TIMEOUT_MS / 1000):
            raise StreamUnavailable(f"Kafka at {self._connection} does not answer, try again")
        try:
            admin = self._client("admin", lambda: KafkaAdminClient(**self._settings()))
            while True:
                try:
                    return question(admin)
                except NodeNotReadyError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
        finally:
            self._admin_lock.release()

    def _writer(self) -> Writer:
        with self._lock:
            writer: Writer | None = self._clients.get("writer")
            if writer is not None and not writer.usable:
                writer.close()
                writer = None
            if writer is None:
                self._await_broker()
                writer = self._clients["writer"] = self._new_writer()
            return writer

    def _new_writer(self) -> Writer:
        if self._fast:
            from nightschool.stream.kafka_fast import FastWriter

            return FastWriter(self._connection)
        from nightschool.stream.kafka_plain import PlainWriter

        return PlainWriter(self._connection)

    def _consumer(self) -> Any:
        return KafkaConsumer(
            **self._settings(),
            metrics_enabled=False,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            max_partition_fetch_bytes=MAX_MESSAGE_BYTES,
        )

    def _settings(self) -> dict[str, Any]:
        """Settings of every kafka-python client, once a broker listens: a client that finds none leaves its thread behind."""
        self._await_broker()
        return {
            **self._connection.security.for_kafka_python(),
            "bootstrap_servers": list(self._connection.bootstrap),
            "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            "reconnect_backoff_max_ms": 1_000,
        }

    def _await_broker(self) -> None:
        await_any(self._connection.bootstrap)

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
            protocol = self._connection.security.protocol
            hint = (
                ""
                if protocol == "PLAINTEXT"
                else f" (over {protocol}: if the brokers are up, check user, password and certificates)"
            )
            raise StreamUnavailable(
                f"Kafka at {self._connection} cannot be used now, try again: {type(error).__name__}: {error}{hint}"
            ) from error

    def close(self) -> None:
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def await_any(bootstrap: Sequence[str]) -> None:
    """Return once one of the brokers listens, else `StreamUnavailable` with what each said."""
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
