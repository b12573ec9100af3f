"""Freezing a night's input on a real stream."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nightschool import semconv
from nightschool.config.settings import NightConfig
from nightschool.errors import DataLossError
from nightschool.registry.folder import Pointer
from nightschool.registry.release import BaseModel
from nightschool.stream import Record, Stream
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.freeze.freeze import entry_of, freeze_night
from nightschool_nightly.freeze.manifest import FrozenRange, NightManifest
from nightschool_nightly.rewards.rubric import parse_rubric

RUBRIC = parse_rubric('task = "triage"\n[[items]]\nname = "a"\nkind = "check"\ncheck = "length"')
SPANS = semconv.TOPIC_SPANS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stream.db"


@pytest.fixture
def stream(path: Path) -> Iterator[Stream]:
    with SqliteStream(path, partitions=2) as stream:
        stream.append(SPANS, [Record(str(number).encode(), b"v") for number in range(20)])
        yield stream


def freeze(stream: Stream, last: NightManifest | None = None, **changes: Any) -> NightManifest:
    plain: dict[str, Any] = {
        "tenant": "acme",
        "settings": NightConfig(),
        "dtype": "float32",
        "base_model": BaseModel("a" * 64, "b" * 64, "c" * 64),
        "rubrics": {"triage": RUBRIC},
        "pointer": Pointer(),
        "now_ms": 1,
    }
    return freeze_night(stream, last=entry_of(last, end="rejected") if last else None, **{**plain, **changes})


def test_a_first_night_reads_everything_as_new(stream: Stream) -> None:
    """Every partition from its first record to its present end, all of it new; a missing topic has no range."""
    manifest = freeze(stream)
    ends = stream.end_offsets(SPANS)
    identity = stream.topic_id(SPANS) or ""
    assert sum(ends.values()) == 20
    assert manifest.ranges == tuple(FrozenRange(SPANS, identity, part, 0, 0, ends[part]) for part in (0, 1))
    assert manifest.has_new_records and manifest.rubrics == {"triage": RUBRIC.digest}


def test_a_night_after_a_published_one_starts_where_that_ended(stream: Stream) -> None:
    """Old records are read again, for outcomes that came late to them; only later ones are new."""
    last = freeze(stream)
    assert not freeze(stream, last).has_new_records
    stream.append(SPANS, [Record(b"1", b"v")])
    now = freeze(stream, last)
    assert now.has_new_records
    assert [(part.start, part.new_from) for part in now.ranges] == [(0, part.end) for part in last.ranges]
    assert sum(part.end - part.new_from for part in now.ranges) == 1


def test_a_night_that_published_nothing_has_read_what_it_read(stream: Stream, path: Path) -> None:
    """Records may expire once any night has read them: a tenant whose nights all end rejected goes on for ever."""
    last = None
    for _ in range(5):
        now = freeze(stream, last)
        assert now.has_new_records
        for part in now.ranges:
            expire(path, before=part.end, partition=part.partition)
        stream.append(SPANS, [Record(str(number).encode(), b"v") for number in range(20)])
        last = now
    assert last is not None and all(part.start == part.new_from > 0 for part in last.ranges)


def test_a_night_goes_on_from_one_entry_of_the_ledger(stream: Stream) -> None:
    """What was read and learned before decides what is chosen, so the entry is in the digest."""
    first = freeze(stream)
    second, third = freeze(stream, first), freeze(stream, replace(first, frozen_at_ms=9))
    assert first.ledger == "" and second.ledger == entry_of(first, end="rejected").digest
    assert second.digest != third.digest and second.previous_frozen_ms == first.frozen_at_ms


def test_the_digest_is_of_the_input_not_of_the_clock(stream: Stream) -> None:
    """The same input frozen later, or kept in another folder or on another machine, is the same night; all that decides makes another."""
    first = freeze(stream)
    assert freeze(stream, now_ms=2).digest == first.digest
    assert freeze(stream, settings=NightConfig(state=Path("elsewhere"))).digest == first.digest
    assert freeze(stream, settings=NightConfig(threads=3), threads=3, kv_cache_bytes=1 << 30).digest == first.digest
    changes: list[dict[str, Any]] = [
        {"settings": NightConfig(seed=1)},
        {"dtype": "bfloat16"},
        {"tenant": "globex"},
        {"rubrics": {}},
        {"pointer": Pointer(epoch=1, stable="f" * 64)},
        {"base_model": BaseModel("d" * 64, "b" * 64, "c" * 64)},
    ]
    for change in changes:
        assert freeze(stream, **change).digest != first.digest
    stream.append(SPANS, [Record(b"1", b"v")])
    assert freeze(stream).digest != first.digest


def test_a_topic_created_again_is_data_loss(stream: Stream, tmp_path: Path) -> None:
    """Offsets of another topic of the same name mean other records: the night stops and says so."""
    last = freeze(stream)
    with SqliteStream(tmp_path / "other.db", partitions=2) as other:
        other.append(SPANS, [Record(str(number).encode(), b"v") for number in range(40)])
        with pytest.raises(DataLossError, match=r"topic ns\.otlp_spans is not the one .* re-created"):
            freeze(other, last)


def test_a_topic_that_is_gone_is_data_loss(stream: Stream, tmp_path: Path) -> None:
    """A topic or partition that the last night read and that no longer exists is not an empty day."""
    last = freeze(stream)
    with (
        SqliteStream(tmp_path / "other.db", partitions=2) as other,
        pytest.raises(DataLossError, match=r"ns\.otlp_spans partition 0, .* is gone"),
    ):
        freeze(other, last)
    more = replace(last, ranges=(*last.ranges, replace(last.ranges[0], partition=7)))
    with pytest.raises(DataLossError, match=r"ns\.otlp_spans partition 7, .* is gone"):
        freeze(stream, more)


def test_records_that_expired_unread_are_data_loss(stream: Stream, path: Path) -> None:
    """The lost offsets are named; records that an earlier night had read may expire."""
    last = freeze(stream)
    stream.append(SPANS, [Record(str(number).encode(), b"v") for number in range(20)])
    end = last.ranges[0].end
    expire(path, before=end)
    assert freeze(stream, last).ranges[0].start == end
    expire(path, before=end + 1)
    with pytest.raises(
        DataLossError, match=f"partition 0: offsets {end} to {end} expired before any night read them; raise the retention"
    ):
        freeze(stream, last)


def test_an_end_before_what_was_read_is_data_loss(stream: Stream) -> None:
    """A stream restored from an old backup would give old offsets to new records."""
    last = freeze(stream)
    ahead = replace(last, ranges=tuple(replace(part, end=part.end + 5) for part in last.ranges))
    with pytest.raises(DataLossError, match=r"ends at \d+, before offset \d+ that was already read"):
        freeze(stream, ahead)


def test_expiry_before_a_first_night_is_no_loss(stream: Stream, path: Path) -> None:
    """A first night reads what there is; what expired before it was not missed by any night."""
    expire(path, before=3)
    assert (freeze(stream).ranges[0].start, freeze(stream).ranges[0].new_from) == (3, 3)


def expire(path: Path, *, before: int, partition: int = 0) -> None:
    """Delete the records of a partition below an offset, as retention does."""
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM log WHERE partition = ? AND offset < ?", (partition, before))
    connection.close()
