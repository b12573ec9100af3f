"""The rules of a `Stream`, checked on SQLite and on a real Apache Kafka."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nightschool.errors import ConfigError, DataLossError, RecordError
from nightschool.stream import MAX_RECORD_BYTES, Record, StoredRecord, Stream, open_stream, partition_of

PARTITIONS = 4
# Vectors published by the authors of FNV, 32 bits, 1a. All but "fo" are negative as signed numbers.
GOLDEN = {b"": 0x811C9DC5, b"a": 0xE40C292C, b"fo": 0x6222E842, b"foobar": 0xBF9CF968}


class SqliteHarness:
    """What the suite needs of SQLite beyond the protocol."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "deep" / "stream.db"

    def open(self) -> Stream:
        return open_stream(f"sqlite:{self.path}", partitions=PARTITIONS)

    def delete_topic(self, topic: str) -> None:
        for file in self.path.parent.glob("stream.db*"):
            file.unlink()

    def expire(self, topic: str, partition: int, before: int) -> None:
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("DELETE FROM log WHERE partition = ? AND offset < ?", (partition, before))


class KafkaHarness:
    """The same for Kafka, written through librdkafka (`fast`) or kafka-python."""

    def __init__(self, bootstrap: str, *, fast: bool) -> None:
        self.bootstrap, self.fast = bootstrap, fast

    def open(self) -> Stream:
        from nightschool.stream.kafka import KafkaStream

        return KafkaStream([self.bootstrap], partitions=PARTITIONS, fast=self.fast)

    def _admin(self, call: Callable[[Any], object]) -> None:
        from kafka import KafkaAdminClient

        with KafkaAdminClient(bootstrap_servers=self.bootstrap) as admin:
            call(admin)

    def delete_topic(self, topic: str) -> None:
        self._admin(lambda admin: admin.delete_topics([topic]))

    def expire(self, topic: str, partition: int, before: int) -> None:
        from kafka import TopicPartition

        self._admin(lambda admin: admin.delete_records({TopicPartition(topic, partition): before}))


Harness = SqliteHarness | KafkaHarness


@pytest.fixture(params=["sqlite", *(pytest.param(name, marks=pytest.mark.kafka) for name in ("kafka", "kafka-fast"))])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    if request.param == "sqlite":
        return SqliteHarness(tmp_path)
    return KafkaHarness(request.getfixturevalue("kafka_broker").bootstrap, fast=request.param == "kafka-fast")


@pytest.fixture
def stream(harness: Harness) -> Iterator[Stream]:
    with harness.open() as stream:
        yield stream


@pytest.fixture
def topic() -> str:
    """A topic of its own for each test, since they share a broker."""
    return f"ns.test-{uuid.uuid4().hex}"


def read_all(stream: Stream, topic: str) -> list[StoredRecord]:
    ends = stream.end_offsets(topic)
    starts = stream.start_offsets(topic)
    return [record for number in ends for record in stream.read(topic, number, starts[number], ends[number])]


def test_appended_records_come_back_whole(stream: Stream, topic: str) -> None:
    """Key, value, headers and offset of a record are read back as they were appended, byte for byte."""
    headers = {"ns-tenant": b"acme", "ns-any": bytes(range(256)), "ns-empty": b""}
    records = [
        Record(b"\x00\xff key", bytes(range(256)), headers),
        Record(b"\x00\xff key", b""),
        Record(b"", b"no key"),
    ]
    offsets = stream.append(topic, records)
    stored = {(record.partition, record.offset): record for record in read_all(stream, topic)}
    assert len(stored) == 3
    for record, offset in zip(records, offsets, strict=True):
        found = stored[offset]
        assert (found.topic, Record(found.key, found.value, found.headers)) == (topic, record)
        assert found.timestamp_ms > 1_700_000_000_000


def test_a_new_opening_sees_everything_acknowledged(harness: Harness, topic: str) -> None:
    """Records outlive the object that wrote them, and offsets continue where they stopped."""
    with harness.open() as first:
        (one,) = first.append(topic, [Record(b"k", b"1")])
    with harness.open() as second:
        (two,) = second.append(topic, [Record(b"k", b"2")])
        assert [record.value for record in read_all(second, topic)] == [b"1", b"2"]
    assert (two.partition, two.offset) == (one.partition, one.offset + 1)


def test_a_reader_follows_a_writer(harness: Harness, stream: Stream, topic: str) -> None:
    """A stream opened before an append sees the append: reader and writer are different processes in production."""
    with harness.open() as reader:
        assert reader.end_offsets(topic) == {}
        stream.append(topic, [Record(b"k", b"1")])
        assert [record.value for record in read_all(reader, topic)] == [b"1"]


def test_order_within_a_key_is_the_order_of_appending(stream: Stream, topic: str) -> None:
    """Records of one key are in one partition, in order, within an append and across appends."""
    for round_number in range(3):
        stream.append(topic, [Record(f"key-{n % 5}".encode(), f"{round_number}-{n:03}".encode()) for n in range(50)])
    stored = read_all(stream, topic)
    for key in {record.key for record in stored}:
        mine = [record for record in stored if record.key == key]
        assert len({record.partition for record in mine}) == 1
        assert [record.value for record in mine] == sorted(record.value for record in mine)
        assert all(a.offset < b.offset for a, b in pairwise(mine))


def test_records_stand_in_the_partition_of_their_key(stream: Stream, topic: str) -> None:
    """The partition is that of the OpenTelemetry Collector's Kafka exporter: FNV-1a 32, signed, absolute, modulo."""
    for key, unsigned in GOLDEN.items():
        magnitude = min(unsigned, (1 << 32) - unsigned)
        assert [partition_of(key, n) for n in (1, 4, 12, 97)] == [magnitude % n for n in (1, 4, 12, 97)]
    keys = [*GOLDEN, *(os.urandom(16).hex().encode() for _ in range(40))]
    offsets = stream.append(topic, [Record(key, b"v") for key in keys])
    assert [offset.partition for offset in offsets] == [partition_of(key, PARTITIONS) for key in keys]
    assert {record.partition for record in read_all(stream, topic)} == {offset.partition for offset in offsets}


def test_read_takes_the_range_asked_for(stream: Stream, topic: str) -> None:
    """`start` is included, `end` is not, and a range past the end stops at the end."""
    offsets = stream.append(topic, [Record(b"k", str(n).encode()) for n in range(10)])
    partition = offsets[0].partition
    values = lambda start, end: [record.value for record in stream.read(topic, partition, start, end)]  # noqa: E731
    assert values(3, 6) == [b"3", b"4", b"5"]
    assert values(8, 1_000_000) == [b"8", b"9"]
    assert values(4, 4) == values(10, 20) == []


def test_offsets_of_empty_and_unknown(stream: Stream, topic: str) -> None:
    """An unknown topic has no partitions, id or records; a created one starts and ends at 0 in each partition."""
    assert (stream.start_offsets(topic), stream.end_offsets(topic), stream.topic_id(topic)) == ({}, {}, None)
    assert list(stream.read(topic, 0, 0, 10)) == []
    stream.create_topic(topic, partitions=3)
    stream.create_topic(topic, partitions=7)
    assert stream.start_offsets(topic) == stream.end_offsets(topic) == {0: 0, 1: 0, 2: 0}
    assert list(stream.read(topic, 0, 0, 10)) == list(stream.read(topic, 99, 0, 10)) == []
    assert stream.append(topic, []) == []


def test_a_topic_created_again_has_another_id(harness: Harness, topic: str) -> None:
    """Offsets of a deleted topic must never be taken for those of its successor."""
    with harness.open() as stream:
        stream.append(topic, [Record(b"k", b"1")])
        first = stream.topic_id(topic)
        assert first == stream.topic_id(topic) is not None
    harness.delete_topic(topic)
    with harness.open() as stream:
        stream.append(topic, [Record(b"k", b"2")])
        second = stream.topic_id(topic)
        assert second not in (None, first)
        assert [record.value for record in read_all(stream, topic)] == [b"2"]


def test_expired_offsets_are_data_loss(harness: Harness, stream: Stream, topic: str) -> None:
    """Reading an offset that is gone raises and names the lost range; the rest is readable, no offset is reused."""
    partition = stream.append(topic, [Record(b"k", str(n).encode()) for n in range(10)])[0].partition
    harness.expire(topic, partition, before=4)
    with pytest.raises(DataLossError, match=r"offsets 2 to 3 .* first still held is 4"):
        list(stream.read(topic, partition, 2, 10))
    assert stream.start_offsets(topic)[partition] == 4
    assert [record.offset for record in stream.read(topic, partition, 4, 10)] == [4, 5, 6, 7, 8, 9]
    harness.expire(topic, partition, before=10)
    assert stream.start_offsets(topic)[partition] == stream.end_offsets(topic)[partition] == 10
    assert stream.append(topic, [Record(b"k", b"next")])[0].offset == 10


def test_big_values(stream: Stream, topic: str) -> None:
    """A record of 4 MiB that does not compress, and one at the limit, come back whole among small ones."""
    big, biggest = os.urandom(4 << 20), os.urandom(MAX_RECORD_BYTES - 100)
    stream.append(topic, [Record(b"k", b"before"), Record(b"k", big), Record(b"k", biggest), Record(b"k", b"after")])
    assert [record.value for record in read_all(stream, topic)] == [b"before", big, biggest, b"after"]


def test_too_big_a_record_is_refused_before_anything_is_written(stream: Stream, topic: str) -> None:
    """A record that can never be stored raises `RecordError`, and nothing of the append is stored."""
    with pytest.raises(RecordError, match=f"at most {MAX_RECORD_BYTES}"):
        stream.append(topic, [Record(b"k", b"small"), Record(b"k", b"x" * (MAX_RECORD_BYTES + 1))])
    assert read_all(stream, topic) == []


def test_many_records_in_one_append(stream: Stream, topic: str) -> None:
    """An append larger than any internal batch is read back complete and in order."""
    records = [Record(b"k", b"%06d" % n) for n in range(5000)]
    offsets = stream.append(topic, records)
    assert [record.value for record in read_all(stream, topic)] == [record.value for record in records]
    assert len(set(offsets)) == 5000


def test_threads_lose_and_duplicate_nothing(stream: Stream, topic: str) -> None:
    """Appends from many threads at once are each stored once, where their returned offset says."""

    def write(thread: int) -> list[tuple[tuple[int, int], bytes]]:
        placed = []
        for n in range(25):
            records = [Record(f"{thread}-{n}-{i}".encode(), f"{thread}:{n}:{i}".encode()) for i in range(3)]
            placed += list(zip(stream.append(topic, records), [record.value for record in records], strict=True))
        return placed

    with ThreadPoolExecutor(8) as pool:
        expected = dict(item for placed in pool.map(write, range(8)) for item in placed)
    assert len(expected) == 8 * 25 * 3
    assert {(record.partition, record.offset): record.value for record in read_all(stream, topic)} == expected


def test_topic_names_are_checked(stream: Stream) -> None:
    """A name that is not a topic name is an error that says what is allowed."""
    for name in ("", "..", "a b", "a/b", "x" * 250):
        with pytest.raises(ConfigError, match="allowed are"):
            stream.append(name, [Record(b"k", b"v")])


def test_unknown_stream_urls_say_what_is_allowed() -> None:
    """For a URL that is not a stream the error names both kinds."""
    for url in ("", "sqlite:", "redis://x", "kafka:x"):
        with pytest.raises(ConfigError, match=r"sqlite:PATH.*kafka://HOST:PORT"):
            open_stream(url)
    for url in ("kafka://", "kafka://broker", "kafka://a:1,b"):
        with pytest.raises(ConfigError, match="names no broker; write kafka://HOST:PORT"):
            open_stream(url)
