"""Records that no night can read, on a real stream: counted, copied once, and too many stop the night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool import semconv
from nightschool.errors import NightError
from nightschool.outcomes.record import parse_outcome, to_logs_request
from nightschool.stream import Record, StoredRecord, Stream
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.episodes.dead_letters import FEW
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.freeze.freeze import freeze_whole_stream
from nightschool_nightly.freeze.manifest import NightManifest

OURS = {semconv.HEADER_TENANT: b"acme"}
POISON = b"\xff\xff not OTLP"


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    with SqliteStream(tmp_path / "stream.db", partitions=2) as stream:
        yield stream


def spans(count: int, headers: dict[str, bytes] = OURS, *, key: bytes | None = None) -> list[Record]:
    """Records of one readable span each, in partitions by their number unless `key` says which."""
    records = []
    for number in range(count):
        request = ExportTraceServiceRequest()
        request.resource_spans.add().scope_spans.add().spans.add(
            trace_id=number.to_bytes(16, "big"), span_id=(number + 1).to_bytes(8, "big")
        )
        records.append(Record(key or b"%d" % number, request.SerializeToString(), headers))
    return records


def poison(count: int, headers: dict[str, bytes] = OURS) -> list[Record]:
    return [Record(b"poison %d" % number, POISON, headers) for number in range(count)]


def freeze(stream: Stream, last: NightManifest | None = None) -> NightManifest:
    return freeze_whole_stream(stream, tenant="acme", now_ms=1, last=last)


def read(stream: Stream, folder: Path, last: NightManifest | None = None) -> EpisodeStore:
    """A store that has read everything; it is closed already, its counts are what is asked of it."""
    store = EpisodeStore(folder)
    try:
        store.build(stream, freeze(stream, last))
    finally:
        store.close()
    return store


def letters(stream: Stream) -> list[StoredRecord]:
    ends = stream.end_offsets(semconv.TOPIC_DLQ)
    return [record for number in ends for record in stream.read(semconv.TOPIC_DLQ, number, 0, ends[number])]


def test_a_dead_letter_is_the_record_with_its_reason_and_place(stream: Stream, tmp_path: Path) -> None:
    """It has the original's key, bytes and headers; more headers say why and where. Readable records are not copied."""
    (at,) = stream.append(semconv.TOPIC_SPANS, poison(1))
    stream.append(semconv.TOPIC_SPANS, spans(5))
    store = read(stream, tmp_path / "store")
    assert (len(store.dead), store.counts.dropped) == (1, {"undecodable-span-record": 1})
    assert store.dead.bury(stream) == 1
    (letter,) = letters(stream)
    assert (letter.key, letter.value, letter.headers[semconv.HEADER_TENANT]) == (b"poison 0", POISON, b"acme")
    assert letter.headers[semconv.HEADER_DLQ_TOPIC] == semconv.TOPIC_SPANS.encode()
    assert letter.headers[semconv.HEADER_DLQ_PLACE] == f"{at.partition}/{at.offset}".encode()
    assert b"is not an ExportTraceServiceRequest" in letter.headers[semconv.HEADER_DLQ_REASON]


def test_reading_alone_writes_nothing(stream: Stream, tmp_path: Path) -> None:
    """A dry run and `nightschool episodes` read as a night does, but write nothing to the dead-letter topic."""
    stream.append(semconv.TOPIC_SPANS, poison(2))
    assert len(read(stream, tmp_path / "store").dead) == 2
    assert stream.end_offsets(semconv.TOPIC_DLQ) == {}


def test_each_is_kept_aside_once(stream: Stream, tmp_path: Path) -> None:
    """A night that runs again copies nothing twice, and what a published night had read is not new."""
    stream.append(semconv.TOPIC_SPANS, poison(1))
    last = freeze(stream)
    assert read(stream, tmp_path / "1").dead.bury(stream) == 1
    assert read(stream, tmp_path / "2").dead.bury(stream) == 0
    stream.append(semconv.TOPIC_SPANS, poison(1))
    store = read(stream, tmp_path / "3", last)
    assert (len(store.dead), store.dead.bury(stream)) == (2, 1)
    assert len(letters(stream)) == 2


def test_another_tenants_poison_is_not_ours(stream: Stream, tmp_path: Path) -> None:
    """Records with another tenant's header neither count nor stop our night, however many there are."""
    stream.append(semconv.TOPIC_SPANS, poison(3 * FEW, {semconv.HEADER_TENANT: b"globex"}))
    assert len(read(stream, tmp_path / "store").dead) == 0


def test_poison_without_a_header_is_everybodys(stream: Stream, tmp_path: Path) -> None:
    """It cannot be told whose it is, so the nights of all tenants count it, and it is copied once."""
    stream.append(semconv.TOPIC_SPANS, poison(1, {}))
    store = read(stream, tmp_path / "store")
    assert store.counts.dropped == {"undecodable-span-record": 1}
    assert [store.dead.bury(stream), store.dead.bury(stream)] == [1, 0]


def test_too_large_a_share_stops_the_night(stream: Stream, tmp_path: Path) -> None:
    """More than one in a thousand: the night ends with the first place; exactly one in a thousand goes on."""
    stream.append(semconv.TOPIC_SPANS, spans(1000, {semconv.HEADER_TENANT: b"globex"}))  # these do not count
    stream.append(semconv.TOPIC_SPANS, spans(1000 * FEW - FEW))
    stream.append(semconv.TOPIC_SPANS, poison(FEW))
    assert len(read(stream, tmp_path / "1").dead) == FEW
    stream.append(semconv.TOPIC_SPANS, poison(1))
    with pytest.raises(NightError, match=rf"{FEW + 1} of {1000 * FEW + 1} records cannot be read, more than 0\.1%.*offset \d+: "):
        read(stream, tmp_path / "2")


def test_a_whole_partition_stops_the_night(stream: Stream, tmp_path: Path) -> None:
    """No record of a partition can be read: what writes there writes something else, however few these records are."""
    with SqliteStream(tmp_path / "one.db", partitions=1) as outcomes:
        outcomes.append(semconv.TOPIC_OUTCOMES, poison(FEW))
        with pytest.raises(NightError, match=rf"none of the {FEW} records of topic ns\.outcomes partition 0 can be read"):
            read(outcomes, tmp_path / "store")


def test_one_bad_outcome_costs_only_itself(stream: Stream, tmp_path: Path) -> None:
    """An official collector puts several outcomes into one record: the good ones count, the record is a dead letter."""
    good = parse_outcome({"target": {"response_id": "r1"}, "name": "thumb", "value": 1, "source": {"kind": "human", "id": "m"}})
    request = ExportLogsServiceRequest()
    logs = request.resource_logs.add().scope_logs.add().log_records
    logs.add(event_name="not an outcome")
    logs.add().CopyFrom(to_logs_request(good, tenant="acme", received_ns=1).resource_logs[0].scope_logs[0].log_records[0])
    stream.append(semconv.TOPIC_OUTCOMES, [Record(b"k", request.SerializeToString(), OURS)])
    store = read(stream, tmp_path / "store")
    assert len(store.dead) == 1
    assert store.counts.dropped["outcome-without-trace"] == 1
