"""What only Kafka does: transactions, brokers that go away and come back, settings of topics."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
import uuid
from typing import Any

import pytest

from nightschool.errors import StreamUnavailable
from nightschool.stream import Offset, Record, open_stream
from nightschool.stream.kafka import KafkaStream
from nightschool.stream.kafka_limits import DELIVERY_TIMEOUT_MS
from nightschool.stream.kafka_topics import plan_of

pytestmark = pytest.mark.kafka


@pytest.fixture
def topic() -> str:
    return f"ns.test-{uuid.uuid4().hex}.outcomes"


def test_offsets_may_have_gaps(kafka_broker: Any, topic: str) -> None:
    """Marks of transactions and aborted records have offsets but are never read, also when they are last."""
    from kafka import KafkaProducer

    with open_stream(f"kafka://{kafka_broker.bootstrap}", partitions=1) as stream:
        stream.append(topic, [Record(b"k", b"before")])
        producer = KafkaProducer(bootstrap_servers=kafka_broker.bootstrap, transactional_id=f"tx-{topic}")
        producer.init_transactions()
        for value, finish in ((b"kept", producer.commit_transaction), (b"dropped", producer.abort_transaction)):
            producer.begin_transaction()
            producer.send(topic, value, key=b"k").get(timeout=10)
            finish()
        producer.close()
        deadline = time.monotonic() + 60
        # A broker writes the mark of a transaction's end shortly after it has told the producer.
        while (end := stream.end_offsets(topic)[0]) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [(record.offset, record.value) for record in stream.read(topic, 0, 0, end)] == [(0, b"before"), (1, b"kept")]
        assert end == 5  # before, kept, mark, dropped, mark


def test_a_record_of_another_client_is_readable(kafka_broker: Any, topic: str) -> None:
    """A record without key, value or headers, as another producer may write it, is read as empty bytes."""
    from kafka import KafkaProducer

    with open_stream(f"kafka://{kafka_broker.bootstrap}", partitions=1) as stream:
        stream.create_topic(topic, partitions=1)
        with KafkaProducer(bootstrap_servers=kafka_broker.bootstrap) as producer:
            producer.send(topic, b"only a value").get(timeout=10)
            producer.send(topic, None, key=b"only a key").get(timeout=10)
        stored = list(stream.read(topic, 0, 0, 2))
    assert [(record.key, record.value, dict(record.headers)) for record in stored] == [
        (b"", b"only a value", {}),
        (b"only a key", b"", {}),
    ]


def test_topics_are_created_with_our_settings(kafka_broker: Any, topic: str) -> None:
    """A topic that `append` creates keeps records as long as a night may need them, stamped by the broker."""
    from kafka import KafkaAdminClient
    from kafka.admin import ConfigResource, ConfigResourceType

    with open_stream(f"kafka://{kafka_broker.bootstrap}", partitions=1) as stream:
        stream.append(topic, [Record(b"k", b"v")])
    with KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap) as admin:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    described = repr(found)
    assert str(90 * 24 * 3600 * 1000) in described
    assert "LogAppendTime" in described


def test_settings_follow_the_kind_of_topic_and_the_cluster() -> None:
    """Outcomes stay 90 days, dead letters 14, the rest 32; with three brokers an acknowledgement means two copies."""
    plans = {name: plan_of(name, partitions=12, brokers=1) for name in ("ns.otlp_spans", "ns.outcomes", "ns.dlq", "ns.erasure")}
    assert {name: int(plan.settings.get("retention.ms", 0)) / 86_400_000 for name, plan in plans.items()} == {
        "ns.otlp_spans": 32,
        "ns.outcomes": 90,
        "ns.dlq": 14,
        "ns.erasure": 0,
    }
    assert {name: plan.settings["cleanup.policy"] for name, plan in plans.items() if name == "ns.erasure"} == {
        "ns.erasure": "compact"
    }
    assert [plan.partitions for plan in plans.values()] == [12, 12, 3, 1]
    clusters = [plan_of("t", partitions=1, brokers=count) for count in (1, 2, 3, 9)]
    assert [(plan.settings["min.insync.replicas"], plan.replicas) for plan in clusters] == [
        ("1", 1),
        ("1", 2),
        ("2", 3),
        ("2", 3),
    ]


def test_an_absent_broker_is_unavailable(unused_port: int) -> None:
    """A stream opens without a broker and says at each use that it may be tried again."""
    with open_stream(f"kafka://127.0.0.1:{unused_port}") as stream:
        with pytest.raises(StreamUnavailable, match=rf"try again \(127\.0\.0\.1:{unused_port}: .*refused"):
            stream.append("ns.x", [Record(b"k", b"v")])
        with pytest.raises(StreamUnavailable):
            stream.end_offsets("ns.x")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_a_killed_broker_loses_nothing_acknowledged(
    kafka_broker: Any, topic: str, fast: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Around SIGKILL and restart of the broker an append is stored or refused, and afterwards appends work again."""
    caplog.set_level(logging.CRITICAL, logger="kafka")  # captured log records would hold the connections they are about
    acknowledged: dict[Offset, bytes] = {}
    refused = 0
    recovered, stop = threading.Event(), threading.Event()

    def write() -> None:
        nonlocal refused
        for n in range(1_000_000):
            if stop.is_set():
                return
            values = [b"%d:%d" % (n, i) for i in range(5)]
            try:
                offsets = stream.append(topic, [Record(value, value) for value in values])
            except StreamUnavailable:
                refused += 1
            else:
                acknowledged.update(zip(offsets, values, strict=True))
                if restarted.is_set():
                    recovered.set()

    restarted = threading.Event()
    with KafkaStream([kafka_broker.bootstrap], partitions=2, fast=fast) as stream:
        stream.append(topic, [Record(b"first", b"first")])
        writer = threading.Thread(target=write)
        writer.start()
        try:
            # One outage so long that an append is refused, and a short one.
            for outage_s in (DELIVERY_TIMEOUT_MS / 1000 + 1, 0.0):
                kafka_broker.kill()
                assert not recovered.wait(outage_s)
                kafka_broker.start()
                restarted.set()
                assert recovered.wait(60)
                restarted.clear()
                recovered.clear()
        finally:
            stop.set()
            writer.join()
    with open_stream(f"kafka://{kafka_broker.bootstrap}") as reader:
        ends = reader.end_offsets(topic)
        stored = {Offset(p, r.offset): r.value for p in ends for r in reader.read(topic, p, 0, ends[p])}
    assert refused
    assert acknowledged.items() <= stored.items()
    gc.collect()  # kafka-python leaves sockets of refused connections to the garbage collector; it must warn here


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_a_topic_deleted_under_a_writer_comes_back_with_our_settings(kafka_broker: Any, topic: str, fast: bool) -> None:
    """An append to a deleted topic is refused, and the next one creates it, as planned and not as the broker would."""
    from kafka import KafkaAdminClient

    with KafkaStream([kafka_broker.bootstrap], partitions=3, fast=fast) as stream:
        stream.append(topic, [Record(b"k", b"before")])
        with KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap) as admin:
            admin.delete_topics([topic])
        with pytest.raises(StreamUnavailable, match="try again"):
            stream.append(topic, [Record(b"k", b"refused")])
        (offset,) = stream.append(topic, [Record(b"k", b"after")])
        assert offset.offset == 0
        state = stream.topic_state(topic)
    assert state is not None
    assert plan_of(topic, partitions=3, brokers=1).settings.items() <= state.settings.items()


def test_the_missing_extra_is_named() -> None:
    """Without kafka-python the error says which line installs it."""
    code = (
        "import sys; sys.modules['kafka'] = None\n"
        "from nightschool.errors import MissingExtraError\nfrom nightschool.stream import open_stream\n"
        "try: open_stream('kafka://x:1')\nexcept MissingExtraError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'nightschool[kafka]'" in said
