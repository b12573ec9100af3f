"""Writing to Kafka through librdkafka (confluent-kafka): the fast path, used wherever that package is installed.

There is one producer and one thread that serves its delivery reports. An append is one future: each report counts down,
and only the last one wakes the caller. `produce_batch` is never used, because it drops headers without an error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from nightschool.errors import RecordError, StreamError, StreamUnavailable
from nightschool.stream.base import Offset, Record
from nightschool.stream.kafka_connection import KafkaConnection
from nightschool.stream.kafka_limits import (
    BATCH_BYTES,
    CONNECT_TIMEOUT_MS,
    DELIVERY_TIMEOUT_MS,
    LINGER_MS,
    MAX_MESSAGE_BYTES,
    RECONNECT_BACKOFF_MAX_MS,
    REQUEST_TIMEOUT_MS,
)

QUEUE_KIB = 128 << 10
"""How much may wait for the brokers; more is refused, so that memory stays bounded while they are away."""
# Level 1 costs a tenth less CPU for a span than librdkafka's default of 3, and stores a few per cent more.
ZSTD_LEVEL = 1
_POLL_S = 0.1  # how long `close` may wait for the thread that serves reports
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
_LOG = logging.getLogger("nightschool.stream.kafka")


class FastWriter:
    """Appends records; threads may share one."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._producer = Producer(
            {
                **connection.security.for_librdkafka(),
                "bootstrap.servers": str(connection),
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "fnv1a_random",  # what partition_of computes; a test compares them
                "compression.type": "zstd",
                "compression.level": ZSTD_LEVEL,
                "linger.ms": LINGER_MS,
                "batch.size": BATCH_BYTES,
                "message.max.bytes": MAX_MESSAGE_BYTES,
                "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
                "request.timeout.ms": REQUEST_TIMEOUT_MS,
                "socket.connection.setup.timeout.ms": CONNECT_TIMEOUT_MS,
                "reconnect.backoff.max.ms": RECONNECT_BACKOFF_MAX_MS,
                "queue.buffering.max.kbytes": QUEUE_KIB,
                "queue.buffering.max.messages": 0,  # bytes are the limit
                "error_cb": self._on_error,
            },
            logger=_LOG,
        )
        self._fatal: KafkaError | None = None
        self._closed = False
        self._reports = Thread(target=self._serve_reports, name="kafka-delivery-reports", daemon=True)
        self._reports.start()

    @property
    def usable(self) -> bool:
        """False after an error from which this producer cannot recover; a new one is needed then."""
        return not self._closed and self._fatal is None

    def append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        return self.submit(topic, records).result()

    def submit(self, topic: str, records: Sequence[Record]) -> Future[list[Offset]]:
        """Hand `records` over; the future is done when all are durable, or when one is refused. Raises as `append`."""
        pending = _Pending(self._connection, len(records))
        produce = self._producer.produce
        headers: Any = None
        named: list[tuple[str, str | bytes | None]] = []
        try:
            for index, record in enumerate(records):
                if record.headers is not headers:  # the records of one request share theirs, so they are listed once
                    headers, named = record.headers, list(record.headers.items())
                produce(topic, record.value, record.key, headers=named, on_delivery=partial(pending.delivered, index))
        except BufferError:
            message = f"more than {QUEUE_KIB >> 10} MiB wait for Kafka at {self._connection}, try again"
            raise StreamUnavailable(message) from None
        except KafkaException as error:
            raise _as_ours(error.args[0], self._connection) from error
        return pending.future

    def close(self) -> None:
        """Close at once. What still waits was never acknowledged, and its futures fail."""
        if self._closed:
            return
        self._closed = True
        self._producer.purge()
        self._reports.join()
        self._producer.flush(1)

    def _serve_reports(self) -> None:
        while not self._closed:
            self._producer.poll(_POLL_S)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = error
        _LOG.log(logging.ERROR if error.fatal() else logging.INFO, "%s", error)


class _Pending:
    """One append that waits for its delivery reports."""

    __slots__ = ("_connection", "_left", "_offsets", "future")

    def __init__(self, connection: KafkaConnection, count: int) -> None:
        self._connection, self._left = connection, count
        self._offsets: list[Offset | None] = [None] * count
        self.future: Future[list[Offset]] = Future()
        self.future.set_running_or_notify_cancel()  # not to be canceled: records that were sent cannot be taken back
        if not count:
            self.future.set_result([])

    def delivered(self, index: int, error: KafkaError | None, message: Any) -> None:
        """Called once for each record, by the thread that serves reports; never by two threads at once."""
        if error is not None:
            if not self.future.done():
                self.future.set_exception(_as_ours(error, self._connection))
            return
        self._offsets[index] = Offset(message.partition(), message.offset())
        self._left -= 1
        if not self._left:
            self.future.set_result([offset for offset in self._offsets if offset is not None])


def _as_ours(error: KafkaError, connection: KafkaConnection) -> StreamError | RecordError:
    if error.code() in _TOO_LARGE:
        return connection.too_large(error.str())
    return connection.unavailable(f"{error.name()}: {error.str()}")
