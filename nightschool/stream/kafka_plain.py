"""Writing to Kafka through kafka-python: pure Python, where confluent-kafka is not installed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.partitioner import Partitioner

from nightschool.errors import RecordError, StreamUnavailable
from nightschool.stream.base import Offset, Record, partition_of
from nightschool.stream.kafka_connection import KafkaConnection
from nightschool.stream.kafka_limits import (
    BATCH_BYTES,
    CONNECT_TIMEOUT_MS,
    DELIVERY_TIMEOUT_MS,
    LINGER_MS,
    MAX_MESSAGE_BYTES,
)
from nightschool.stream.kafka_python import client_settings, kafka_errors


class TracePartitioner(Partitioner):  # type: ignore[misc]  # kafka-python has no types
    """Partitions as `partition_of` does, so that our records are where the OpenTelemetry Collector would put them."""

    def partition(self, topic: str, key: Any, serialized_key: bytes, value: Any, serialized_value: Any, cluster: Any) -> int:
        return partition_of(serialized_key, len(cluster.partitions_for_topic(topic)))


class PlainWriter:
    """Appends records; threads may share one.

    After an error it is not usable: a producer that let a batch expire never sends again.
    """

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self.usable = True
        self._lock, self._closed = Lock(), False
        with kafka_errors(self._connection):
            self._producer = KafkaProducer(
                **client_settings(connection),
                metrics_enabled=False,
                acks="all",
                enable_idempotence=True,
                compression_type="zstd",
                linger_ms=LINGER_MS,
                batch_size=BATCH_BYTES,
                max_request_size=MAX_MESSAGE_BYTES,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                max_block_ms=CONNECT_TIMEOUT_MS,
                allow_auto_create_topics=False,  # a topic with the broker's own settings would lose records early
                partitioner=TracePartitioner(),
            )

    def submit(self, topic: str, records: Sequence[Record]) -> Future[list[Offset]]:
        """As `KafkaStream.submit`; but when it returns, the records are durable or refused already."""
        done: Future[list[Offset]] = Future()
        try:
            done.set_result(self._append(topic, records))
        except (StreamUnavailable, RecordError) as error:
            done.set_exception(error)
        return done

    def _append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        with kafka_errors(self._connection):
            try:
                sent = [self._producer.send(topic, r.value, key=r.key, headers=list(r.headers.items())) for r in records]
                deadline = time.monotonic() + (DELIVERY_TIMEOUT_MS + LINGER_MS) / 1000
                stored = [future.get(timeout=max(0.0, deadline - time.monotonic())) for future in sent]
            except KafkaError:
                self.usable = False
                self.close()
                raise
        return [Offset(one.partition, one.offset) for one in stored]

    def close(self) -> None:
        """Close at once. What it still holds was never acknowledged, and waiting for that might never end."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        # close() alone would wait for every batch, also for those that can never be sent.
        self._producer._sender.force_close()
        self._producer.close()
