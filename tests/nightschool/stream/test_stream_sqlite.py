"""What only SQLite does: one file, shared by threads and processes, on a disk that may be full."""

from __future__ import annotations

import itertools
import multiprocessing
import resource
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from nightschool.errors import StreamError, StreamUnavailable
from nightschool.stream import Record
from nightschool.stream.commit_queue import LARGE_APPEND_BYTES
from nightschool.stream.sqlite import SqliteStream

TOPIC = "ns.test"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "stream.db"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the file's write lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def values(stream: SqliteStream) -> list[bytes]:
    ends = stream.end_offsets(TOPIC)
    return [record.value for number in ends for record in stream.read(TOPIC, number, 0, ends[number])]


def test_the_clock_stamps_records(path: Path) -> None:
    """The timestamp of a record is the clock's when it was committed."""
    with SqliteStream(path, partitions=1, clock_ms=lambda: 1234) as stream:
        stream.append(TOPIC, [Record(b"k", b"v")])
        assert [record.timestamp_ms for record in stream.read(TOPIC, 0, 0, 1)] == [1234]


def test_waiting_appends_share_a_commit(path: Path) -> None:
    """Appends that wait for the file are committed together: the clock is asked once a transaction."""
    with SqliteStream(path, partitions=1, clock_ms=itertools.count().__next__, busy_timeout_s=60) as stream:
        with ThreadPoolExecutor(9) as pool:
            with locked(path):
                first = pool.submit(stream.append, TOPIC, [Record(b"k", b"first")])
                while not stream._writer_lock.locked() or stream._queue.waiting:
                    time.sleep(0.001)
                rest = [pool.submit(stream.append, TOPIC, [Record(b"k", b"%d" % n)]) for n in range(8)]
                while len(stream._queue.waiting) < 8:
                    time.sleep(0.001)
            offsets = [one.result()[0].offset for one in (first, *rest)]
        assert sorted(offsets) == list(range(9))
        assert [record.timestamp_ms for record in stream.read(TOPIC, 0, 0, 9)] == [0] + [1] * 8


def test_a_small_append_waits_for_no_more_than_one_large(path: Path) -> None:
    """Of what waits, large appends are committed one at a time, in turns with all that are small."""
    large, small = b"x" * (LARGE_APPEND_BYTES + 1), b"small"
    with SqliteStream(path, partitions=1, clock_ms=itertools.count().__next__, busy_timeout_s=60) as stream:
        with ThreadPoolExecutor(7) as pool:
            with locked(path):
                waiting = [pool.submit(stream.append, TOPIC, [Record(b"k", b"first")])]
                while not stream._writer_lock.locked() or stream._queue.waiting:
                    time.sleep(0.001)
                for number, value in enumerate((large, large, large, small, small), start=1):
                    waiting.append(pool.submit(stream.append, TOPIC, [Record(b"k", value)]))
                    while len(stream._queue.waiting) < number:
                        time.sleep(0.001)
            for one in waiting:
                one.result()
        commits = [(record.timestamp_ms, record.value[:5]) for record in stream.read(TOPIC, 0, 0, 6)]
    assert commits == [(0, b"first"), (1, b"xxxxx"), (2, b"small"), (2, b"small"), (3, b"xxxxx"), (4, b"xxxxx")]


def test_what_another_connection_appends_is_seen(path: Path) -> None:
    """The next offsets are remembered only as long as nobody else has written."""
    with SqliteStream(path, partitions=1) as one, SqliteStream(path, partitions=1) as other:
        placed = [stream.append(TOPIC, [Record(b"k", b"v")])[0].offset for stream in (one, one, other, one, other, other, one)]
    assert placed == list(range(7))


def test_a_busy_file_is_unavailable(path: Path) -> None:
    """An append that cannot get the file in time may be tried again, and nothing of it was written."""
    with SqliteStream(path, partitions=1, busy_timeout_s=0.05) as stream:
        stream.append(TOPIC, [Record(b"k", b"before")])
        with locked(path), pytest.raises(StreamUnavailable, match=r"stream\.db cannot be used now, try again: .*locked"):
            stream.append(TOPIC, [Record(b"k", b"lost")])
        stream.append(TOPIC, [Record(b"k", b"after")])
        assert values(stream) == [b"before", b"after"]


def test_a_full_disk_is_unavailable(path: Path) -> None:
    """A full disk refuses the whole append; what was acknowledged stays, and appends work again with space."""
    with SqliteStream(path, partitions=2) as stream:
        stream.append(TOPIC, [Record(b"k", b"before")])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        try:
            with pytest.raises(StreamUnavailable, match=r"full|disk"):
                stream.append(TOPIC, [Record(b"k", b"x" * 500_000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert values(stream) == [b"before"]
        (placed,) = stream.append(TOPIC, [Record(b"k", b"after")])
        assert (placed.offset, values(stream)) == (1, [b"before", b"after"])


def test_an_append_is_all_or_nothing(path: Path) -> None:
    """A record that the file refuses takes with it what the same append had written before it."""
    with SqliteStream(path, partitions=1) as stream:
        with closing(sqlite3.connect(path)) as other:
            refuse = "CREATE TRIGGER refuse BEFORE INSERT ON log WHEN new.value = x'626164' BEGIN SELECT RAISE(FAIL, 'no'); END"
            other.execute(refuse)
        with pytest.raises(StreamError):
            stream.append(TOPIC, [Record(b"k", b"good"), Record(b"k", b"bad")])
        (placed,) = stream.append(TOPIC, [Record(b"k", b"next")])
        assert (placed.offset, values(stream)) == (0, [b"next"])


def test_a_file_that_is_no_stream_is_refused(path: Path) -> None:
    """Another kind of file is not taken for a stream and not overwritten."""
    path.parent.mkdir()
    path.write_bytes(b"precious notes, not a database " * 100)
    with pytest.raises(StreamError, match="not a stream") as caught:
        SqliteStream(path, partitions=1)
    assert not isinstance(caught.value, StreamUnavailable)
    assert path.read_bytes().startswith(b"precious")


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    """A path below a file cannot hold a stream, and the error names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StreamUnavailable, match=r"file/stream\.db"):
        SqliteStream(tmp_path / "file" / "stream.db", partitions=1)


def test_a_closed_stream_says_so(path: Path) -> None:
    """Appending to a closed stream is an error, not a silent loss; closing twice is harmless."""
    stream = SqliteStream(path, partitions=1)
    stream.close()
    stream.close()
    with pytest.raises(StreamError, match="closed"):
        stream.append(TOPIC, [Record(b"k", b"v")])


def test_a_reader_is_not_held_by_a_writer(path: Path) -> None:
    """A reader in the middle of a range neither blocks appends nor sees more than the range it asked for."""
    with SqliteStream(path, partitions=1) as stream:
        stream.append(TOPIC, [Record(b"k", b"%d" % n) for n in range(3000)])
        reading = stream.read(TOPIC, 0, 0, 3000)
        assert next(reading).value == b"0"
        stream.append(TOPIC, [Record(b"k", b"later")])
        assert [record.value for record in reading] == [b"%d" % n for n in range(1, 3000)]


def _append_from_a_process(path: Path, name: int) -> None:
    with SqliteStream(path, partitions=3) as stream:
        for n in range(40):
            stream.append(TOPIC, [Record(b"%d" % n, b"%d:%d" % (name, n))])


def test_processes_share_the_file(path: Path) -> None:
    """Processes that open and write one file at the same moment lose and duplicate nothing."""
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_append_from_a_process, args=(path, name)) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    with SqliteStream(path, partitions=3) as stream:
        assert sorted(values(stream)) == sorted(b"%d:%d" % (name, n) for name in range(4) for n in range(40))
