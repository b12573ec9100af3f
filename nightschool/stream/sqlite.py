"""The embedded stream: one SQLite file in WAL mode. It is the default, and needs no server.

Threads and processes may write and read it at the same time. Appends that wait for the file are committed together, and
each returns only after its commit is on the disk (`synchronous=FULL`). Large ones are committed one at a time and take turns
with the others, so that a small one waits for no more than one of them.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import Any, Self

from nightschool.errors import StreamError, StreamUnavailable
from nightschool.stream.base import Offset, Record, StoredRecord, check_sizes, check_topic, lost_range, partition_of
from nightschool.stream.commit_queue import LARGE_APPEND_BYTES, CommitQueue, Waiting

BUSY_TIMEOUT_S = 5.0  # how long an append waits for another process
# Of 4 KiB in the log of writes before a commit copies them into the file. With SQLite's own 1,000 one commit in a few
# took ten times as long as the others, and every append that waited for it did too.
_CHECKPOINT_PAGES = 256
# A read holds at most this much in memory.
READ_BATCH_RECORDS = 1000
READ_BATCH_BYTES = 8 << 20

# A rowid table in the order of appends, with a narrow index beside it: values are written once, at the end of the file,
# and only the index is changed in as many places as there are partitions.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, uuid TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS partitions (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, next_offset INTEGER NOT NULL, PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL,
    key BLOB NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS log_offsets ON log (topic, partition, offset);
"""


_Places = dict[str, tuple[int, dict[int, int]]]
"""Topics by name: the row id of each, and the next offset of its partitions."""


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class _Batch(Waiting):
    """The records of one append."""

    def __init__(self, topic: str, records: Sequence[Record]) -> None:
        super().__init__(sum(len(record.value) for record in records))
        # The records of one request often share one mapping of headers, which is then encoded once.
        shared = {id(record.headers): record.headers for record in records}
        encoded = {identity: _encode_headers(headers) for identity, headers in shared.items()}
        self.topic = topic
        self.rows = [(record.key, encoded[id(record.headers)], record.value) for record in records]
        self.offsets: list[Offset] = []
        self.error: StreamError | None = StreamUnavailable("the commit was interrupted, try again")


class SqliteStream:
    """A `Stream` in one SQLite file."""

    append_bytes = 2 * LARGE_APPEND_BYTES

    def __init__(
        self,
        path: str | Path,
        *,
        partitions: int,
        clock_ms: Callable[[], int] = wall_clock_ms,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> None:
        self.path = Path(path)
        self._partitions, self._clock_ms, self._busy_timeout_s = partitions, clock_ms, busy_timeout_s
        self._queue: CommitQueue[_Batch] = CommitQueue(self._commit)
        self._writer_lock = Lock()
        self._data_version = 0  # of the file, when `_places` was read: SQLite changes it when another connection writes
        self._places: _Places = {}
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer: sqlite3.Connection | None = self._connect()
            self._writer.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            self._create_schema(self._writer)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process opens the same file itself."""
        return _open, (self.path, self._partitions)

    # --- writing ------------------------------------------------------------------------------------------------------
    def create_topic(self, topic: str, *, partitions: int) -> None:
        check_topic(topic)
        with self._errors(), self._writer_lock, _transaction(self._open_writer()) as db:
            _create_topic(db, topic, partitions)

    def append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        check_topic(topic)
        check_sizes(records)
        batch = _Batch(topic, records)
        self._queue.settle(batch)
        if batch.error is not None:
            # A new exception for each thread: one that is raised in several collects the tracebacks of all.
            raise type(batch.error)(*batch.error.args) from batch.error
        return batch.offsets

    def _commit(self, batches: Sequence[_Batch]) -> None:
        """Write `batches` in one transaction; all of them are durable afterwards, or none."""
        try:
            with self._writer_lock, self._errors(), _transaction(self._open_writer()) as db:
                now, places = self._clock_ms(), self._take_places(db)
                offsets = [self._insert(db, batch, now, places) for batch in batches]
        except StreamError as error:
            for batch in batches:
                batch.error = error
        else:
            self._places = places
            for batch, placed in zip(batches, offsets, strict=True):
                batch.offsets, batch.error = placed, None
        finally:
            for batch in batches:
                batch.settled = True

    def _insert(self, db: sqlite3.Connection, batch: _Batch, now_ms: int, places: _Places) -> list[Offset]:
        topic, following = self._place(db, batch.topic, places)
        rows, offsets, touched = [], [], {}
        for key, headers, value in batch.rows:
            partition = partition_of(key, len(following))
            offset = following[partition]
            following[partition] = touched[partition] = offset + 1
            offsets.append(Offset(partition, offset))
            rows.append((topic, partition, offset, now_ms, key, headers, value))
        db.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        db.executemany(
            "UPDATE partitions SET next_offset = ? WHERE topic = ? AND partition = ?",
            ((offset, topic, partition) for partition, offset in touched.items()),
        )
        return offsets

    def _take_places(self, db: sqlite3.Connection) -> _Places:
        """What is remembered of topics, if nobody else has written since. What a transaction rolls back is forgotten."""
        places, self._places = self._places, {}
        (version,) = db.execute("PRAGMA data_version").fetchone()
        known, self._data_version = self._data_version, version
        return places if version == known else {}

    def _place(self, db: sqlite3.Connection, topic: str, places: _Places) -> tuple[int, dict[int, int]]:
        """The row id of `topic`, created if there is none, and the next offset of each partition.

        They are remembered in `places`: each row that is read gives Python's lock away and waits for it again, which takes
        long beside busy threads.
        """
        if topic not in places:
            row = _create_topic(db, topic, self._partitions)
            places[topic] = row, dict(db.execute("SELECT partition, next_offset FROM partitions WHERE topic = ?", (row,)))
        return places[topic]

    # --- reading ------------------------------------------------------------------------------------------------------
    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[StoredRecord]:
        """Each batch is a query of its own, so that a slow reader never prevents a checkpoint of the file."""
        first = self.start_offsets(topic).get(partition)
        if first is None:
            return
        if start < first:
            raise lost_range(topic, partition, start, first)
        with self._errors(), closing(self._connect()) as db:
            while batch := _read_batch(db, topic, partition, start, end):
                yield from batch
                start = batch[-1].offset + 1

    def start_offsets(self, topic: str) -> dict[int, int]:
        return self._offsets(
            "SELECT partition, coalesce((SELECT min(offset) FROM log WHERE log.topic = partitions.topic"
            " AND log.partition = partitions.partition), next_offset)"
            " FROM partitions JOIN topics ON topics.id = partitions.topic WHERE name = ? ORDER BY partition",
            topic,
        )

    def end_offsets(self, topic: str) -> dict[int, int]:
        return self._offsets(
            "SELECT partition, next_offset FROM partitions JOIN topics ON topics.id = partitions.topic"
            " WHERE name = ? ORDER BY partition",
            topic,
        )

    def topic_id(self, topic: str) -> str | None:
        with self._errors(), closing(self._connect()) as db:
            row = db.execute("SELECT uuid FROM topics WHERE name = ?", (topic,)).fetchone()
        return None if row is None else str(row[0])

    def _offsets(self, query: str, topic: str) -> dict[int, int]:
        with self._errors(), closing(self._connect()) as db:
            return dict(db.execute(query, (topic,)))

    # --- connections --------------------------------------------------------------------------------------------------
    def _connect(self) -> sqlite3.Connection:
        # A connection is used by one thread at a time, but not always by the one that opened it.
        db = sqlite3.connect(self.path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA synchronous = FULL")
        return db

    def _create_schema(self, db: sqlite3.Connection) -> None:
        deadline = time.monotonic() + self._busy_timeout_s
        while db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            # Turning WAL on does not wait for another process that does the same: SQLite says "locked" at once.
            try:
                db.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        with _transaction(db):
            for statement in filter(str.strip, _SCHEMA.split(";")):
                db.execute(statement)

    def _open_writer(self) -> sqlite3.Connection:
        if self._writer is None:
            raise StreamError(f"the stream {self.path} is closed")
        return self._writer

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours; those that may pass (busy, disk full, input/output) as `StreamUnavailable`."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            if isinstance(error, StreamError):
                raise
            raise StreamUnavailable(f"the stream {self.path} cannot be used now, try again: {error}") from error
        except sqlite3.Error as error:
            raise StreamError(f"the stream {self.path} is damaged or not a stream: {error}") from error

    def close(self) -> None:
        with self._writer_lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _open(path: Path, partitions: int) -> SqliteStream:
    return SqliteStream(path, partitions=partitions)


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A write transaction: committed at the end, rolled back on any error (also one of the commit itself)."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _create_topic(db: sqlite3.Connection, topic: str, partitions: int) -> int:
    """The row id of `topic`, created if there is none."""
    row = db.execute("SELECT id FROM topics WHERE name = ?", (topic,)).fetchone()
    if row is not None:
        return int(row[0])
    cursor = db.execute("INSERT INTO topics (name, uuid) VALUES (?, ?)", (topic, str(uuid.uuid4())))
    assert cursor.lastrowid is not None
    db.executemany("INSERT INTO partitions VALUES (?, ?, 0)", ((cursor.lastrowid, number) for number in range(partitions)))
    return cursor.lastrowid


def _read_batch(db: sqlite3.Connection, topic: str, partition: int, start: int, end: int) -> list[StoredRecord]:
    """The next records, bounded by number and by bytes; empty at the end."""
    rows = db.execute(
        "SELECT offset, timestamp_ms, key, value, headers FROM log JOIN topics ON topics.id = log.topic"
        " WHERE name = ? AND partition = ? AND offset >= ? AND offset < ? ORDER BY offset LIMIT ?",
        (topic, partition, start, end, READ_BATCH_RECORDS),
    )
    batch, size = [], 0
    with closing(rows):
        for offset, timestamp_ms, key, value, headers in rows:
            batch.append(StoredRecord(topic, partition, offset, timestamp_ms, key, value, _decode_headers(headers)))
            size += len(value)
            if size >= READ_BATCH_BYTES:
                break
    return batch


def _encode_headers(headers: Mapping[str, bytes]) -> str:
    """JSON in which each byte of a value is one character (latin-1): exact, and readable in any SQLite shell."""
    return json.dumps({name: value.decode("latin-1") for name, value in headers.items()}, separators=(",", ":"))


@lru_cache(maxsize=1024)  # the records of one request have the same headers
def _decode_headers(text: str) -> Mapping[str, bytes]:
    return MappingProxyType({name: value.encode("latin-1") for name, value in json.loads(text).items()})
