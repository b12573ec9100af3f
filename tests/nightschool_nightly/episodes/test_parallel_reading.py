"""A day read by several processes is the day that one would have read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from nightschool import semconv as names
from nightschool.errors import DataLossError, NightError
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.stream import Record
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.episodes.counts import ReadCounts
from nightschool_nightly.episodes.parallel_reading import MIN_RECORDS, ReadingProcess, count_processes, share_out
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.freeze.freeze import freeze_whole_stream
from nightschool_nightly.freeze.manifest import FrozenRange, NightManifest

HEADERS = {names.HEADER_TENANT: b"acme"}


def span(number: int, answer: str) -> Record:
    trace = (number * 7919 % 1000).to_bytes(16, "big")
    said = {
        role: json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])
        for role, text in (("user", "q"), ("assistant", answer))
    }
    request = ExportTraceServiceRequest()
    added = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(trace_id=trace, span_id=number.to_bytes(8, "big"), start_time_unix_nano=number)
    )
    attributes = {
        names.GEN_AI_OPERATION_NAME: "chat",
        names.GEN_AI_INPUT_MESSAGES: said["user"],
        names.GEN_AI_OUTPUT_MESSAGES: said["assistant"],
        names.GEN_AI_RESPONSE_ID: f"r-{number}",
        f"{names.JOIN_KEY_PREFIX}ticket": f"T-{number}",
    }
    added.attributes.extend(KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in attributes.items())
    return Record(trace.hex().encode(), request.SerializeToString(), HEADERS)


def outcome(number: int, text: str, **target: object) -> Record:
    said = Outcome(target or {"response_id": f"r-{number}"}, "queue", final_text=text, occurred_at_ns=5)
    return Record(said.key, to_logs_request(said, tenant="acme", received_ns=9).SerializeToString(), HEADERS)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[SqliteStream]:
    """A day with many copies in every partition, some of which differ: only the order decides which copy counts."""
    with SqliteStream(tmp_path / "stream.db", partitions=5) as stream:
        for copy in range(3):
            stream.append(names.TOPIC_SPANS, [span(number, f"answer {number} {copy}") for number in range(1, 120)])
            stream.append(names.TOPIC_OUTCOMES, [outcome(number, f"final {number} {copy}") for number in range(1, 120, 2)])
        stream.append(
            names.TOPIC_OUTCOMES, [outcome(n, "by ticket", join_key={"ns": "ticket", "id": f"T-{n}"}) for n in range(2, 120, 2)]
        )
        stream.append(names.TOPIC_OUTCOMES, [Record(b"k", b"\xff\xff\xff", HEADERS)])
        yield stream


def freeze(stream: SqliteStream) -> NightManifest:
    return freeze_whole_stream(stream, tenant="acme")


def build(stream: SqliteStream, folder: Path, processes: int) -> tuple[list[BuiltEpisode], ReadCounts, int]:
    store = EpisodeStore(folder)
    store.build(stream, freeze(stream), processes=processes)
    built = list(store.episodes("acme"))
    store.close()
    assert not [path for path in folder.rglob("*") if path.is_file()]
    return built, store.counts, len(store.dead)


def test_processes_change_nothing(stream: SqliteStream, tmp_path: Path) -> None:
    """The same episodes in the same order, the same one of several copies, the same counts; and no file is left."""
    alone = build(stream, tmp_path / "1", 1)
    assert len(alone[0]) == 119 and alone[1].dropped["duplicate-span"] == 2 * 119 and alone[2] == 1
    assert {item.episode.calls[0].answer.text.split()[-1] for item in alone[0]} == {"0"}
    for processes in (2, 4):
        assert build(stream, tmp_path / str(processes), processes) == alone


def test_shares_keep_the_order_and_are_even() -> None:
    """Every range is in one share, in order, and no share is empty or holds most of the day."""
    parts = [FrozenRange("t", "", number, 0, 0, size) for number, size in enumerate([5, 100, 100, 0, 100, 100, 3])]
    for processes in range(1, 9):
        shares = share_out(parts, processes)
        assert [part for share in shares for part in share] == parts
        assert all(shares) and len(shares) <= processes
    assert [sum(part.end for part in share) for share in share_out(parts, 2)] == [205, 203]
    assert share_out([], 2) == []


def test_a_small_day_is_read_by_one_process(stream: SqliteStream) -> None:
    """For few records a process costs more than it saves; a stream that no other process can open is read by one."""
    small, large = ([FrozenRange("t", "", n, 0, 0, size) for n in range(4)] for size in (10, MIN_RECORDS))
    assert count_processes(stream, small) == 1

    class Closed(SqliteStream):
        def __reduce__(self) -> tuple[object, ...]:
            raise TypeError("stays here")

    with Closed(stream.path, partitions=1) as closed:
        assert count_processes(closed, large) == 1


def test_an_error_of_a_reading_process_is_the_nights(stream: SqliteStream, tmp_path: Path) -> None:
    """What one process cannot read stops the night with the same error; one that died has not read an empty part."""
    lost = FrozenRange(names.TOPIC_SPANS, "", 0, -5, 0, 9)
    with (
        ReadingProcess(tmp_path / "a", stream, "acme", [lost]) as process,
        pytest.raises(DataLossError, match="offsets -5 to -1"),
    ):
        process.result()
    (tmp_path / "b").write_text("in the way")
    with ReadingProcess(tmp_path / "b", stream, "acme", []) as process, pytest.raises(NightError, match="ended with status 1"):
        process.result()
