"""What only the fast writer has: a bounded queue, futures that always end, a substitute where it is missing."""

from __future__ import annotations

import gc
import logging
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from nightschool.errors import StreamUnavailable
from nightschool.stream import Offset, Record, kafka_fast
from nightschool.stream.kafka import KafkaStream
from nightschool.stream.kafka_fast import FastWriter
from nightschool.stream.kafka_plain import PlainWriter

pytestmark = [pytest.mark.kafka, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]


@pytest.fixture(autouse=True)
def _refused_connections(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """kafka-python leaves sockets of refused connections to the garbage collector; it must warn here, not later."""
    caplog.set_level(logging.CRITICAL, logger="kafka")
    yield
    gc.collect()


@pytest.fixture
def topic() -> str:
    return f"ns.test-{uuid.uuid4().hex}"


def test_it_is_used_where_it_is_installed(kafka_broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a stream writes through librdkafka, and through kafka-python where confluent-kafka is missing."""
    with KafkaStream([kafka_broker.bootstrap], partitions=1) as stream:
        assert isinstance(stream._writer(), FastWriter)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with KafkaStream([kafka_broker.bootstrap], partitions=1) as stream:
        assert isinstance(stream._writer(), PlainWriter)


def test_a_submitted_append_is_done_when_it_is_durable(kafka_broker: Any, topic: str) -> None:
    """Futures give the offsets in order; one that is waited for cannot be canceled: its records are sent."""
    with KafkaStream([kafka_broker.bootstrap], partitions=1, fast=True) as stream:
        futures = [stream.submit(topic, [Record(b"k", b"%d" % number)] * 2) for number in range(20)]
        assert not futures[-1].cancel()
        offsets = [offset for future in futures for offset in future.result(timeout=30)]
        assert offsets == [Offset(0, number) for number in range(40)]
        assert stream.submit(topic, []).result(timeout=1) == []


@pytest.mark.slow
def test_what_waits_for_an_absent_broker_is_bounded(
    kafka_jars: Path,
    start_broker: Callable[..., AbstractContextManager[Any]],
    tmp_path: Path,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the broker is away a bounded number of bytes waits and more is refused; every future ends."""
    monkeypatch.setattr(kafka_fast, "QUEUE_KIB", 2048)
    waiting: list[Future[list[Offset]]] = []
    with start_broker(kafka_jars, tmp_path) as broker, KafkaStream([broker.bootstrap], partitions=1, fast=True) as stream:
        stream.append(topic, [Record(b"k", b"v")])
        broker.kill()
        with pytest.raises(StreamUnavailable, match=r"more than 2 MiB wait for Kafka at .*, try again"):
            waiting.extend(stream.submit(topic, [Record(b"k", bytes(100_000))]) for _ in range(100))
        assert 10 < len(waiting) < 30
        for future in waiting[:5]:
            with pytest.raises(StreamUnavailable, match="try again"):
                future.result(timeout=30)


def test_closing_fails_what_still_waits(
    kafka_jars: Path, start_broker: Callable[..., AbstractContextManager[Any]], tmp_path: Path, topic: str
) -> None:
    """Futures of a stream that was closed end."""
    with start_broker(kafka_jars, tmp_path) as broker:
        stream = KafkaStream([broker.bootstrap], partitions=1, fast=True)
        stream.append(topic, [Record(b"k", b"v")])
        broker.kill()
        future = stream.submit(topic, [Record(b"k", b"v")])
        stream.close()
        with pytest.raises(StreamUnavailable):
            future.result(timeout=5)
