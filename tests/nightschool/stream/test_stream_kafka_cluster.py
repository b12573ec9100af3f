"""Three real brokers: an acknowledgment means two copies, and a leader may die at any time."""

from __future__ import annotations

import gc
import logging
import threading
import uuid
from typing import Any

import pytest

from nightschool.errors import StreamUnavailable
from nightschool.stream import Offset, Record
from nightschool.stream.kafka import KafkaStream


def _leader(stream: KafkaStream, topic: str) -> int:
    """Index of the broker that leads partition 0."""
    return int(stream._admin.describe(topic)["partitions"][0]["leader_id"]) - 1


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_a_killed_leader_loses_nothing_acknowledged(
    kafka_cluster: list[Any], fast: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """When the leader is killed another broker takes over, appends continue, and nothing acknowledged is lost."""
    caplog.set_level(logging.CRITICAL, logger="kafka")  # captured log records would hold the connections they are about
    topic = f"ns.test-{uuid.uuid4().hex}"
    acknowledged: dict[Offset, bytes] = {}
    gone_on, changed, stop = threading.Event(), threading.Event(), threading.Event()

    def write() -> None:
        for n in range(1_000_000):
            if stop.is_set():
                return
            values = [b"%d:%d" % (n, i) for i in range(5)]
            try:
                offsets = stream.append(topic, [Record(b"k", value) for value in values])
            except StreamUnavailable:
                continue
            acknowledged.update(zip(offsets, values, strict=True))
            if changed.is_set():
                gone_on.set()

    bootstrap = [broker.bootstrap for broker in kafka_cluster]
    with KafkaStream(bootstrap, partitions=1, fast=fast) as stream:
        stream.append(topic, [Record(b"k", b"first")])
        state = stream.topic_state(topic)
        assert state is not None
        assert (state.replicas, state.settings["min.insync.replicas"]) == (3, "2")
        writer = threading.Thread(target=write)
        writer.start()
        killed = kafka_cluster[_leader(stream, topic)]
        try:
            killed.kill()
            changed.set()
            assert gone_on.wait(60)
        finally:
            stop.set()
            writer.join()
            killed.launch()
            killed.await_listening()
    with KafkaStream(bootstrap, partitions=1, fast=fast) as reader:
        assert bootstrap[_leader(reader, topic)] != killed.bootstrap
        end = reader.end_offsets(topic)[0]
        stored = {Offset(0, record.offset): record.value for record in reader.read(topic, 0, 0, end)}
    assert acknowledged.items() <= stored.items()
    gc.collect()  # kafka-python leaves sockets of refused connections to the garbage collector; it must warn here
