"""The raw tables of a night: one narrow row for each span, message event, join key and outcome that was read.

What is large (messages, tool results, values of outcomes) waits in the spool; a row holds only its place there, so that
neither the memory nor the sorting of the join grows with the contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from hashlib import blake2b
from itertools import count
from operator import attrgetter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from nightschool import semconv as names
from nightschool.outcomes.record import Outcome, canonical
from nightschool_nightly.dialects.record import EventRow, SpanRow
from nightschool_nightly.episodes.spool import Spool

# A client's clock may be this far ahead of the collector's; an outcome never counts as later than that after it was
# received. Otherwise one from a clock that is a year ahead would replace every correction of the next year.
_CLOCK_SKEW_NS = 5 * 60 * 10**9
LAST_NS = 2**63 - 1 - _CLOCK_SKEW_NS  # OTLP times have 64 bits without a sign, columns 63
_FINGERPRINT_BYTES = 7  # fits a signed column; of a million values two are alike with a chance of 1 in 100,000
_BATCH_ROWS = 20_000  # rows that wait in memory for one insert: one insert a row would be slower than reading it
_THREADS = 2  # DuckDB's threads share the memory limit, and each needs some for itself

_DATABASE, _CONTENTS = "episodes.duckdb", "contents"

# In every table: `content` is a place in the spool, `is_new` says that no night that ended has read the record, and
# `read_order` numbers rows in the order in which they were read, so that the first copy of anything is the same every
# time.

# One row a span. An instrumentation that retries sends a span twice: both rows are here.
SPANS = pa.schema(
    [
        ("trace", pa.string()),  # ids are lowercase hex
        ("span", pa.string()),
        ("parent", pa.string()),  # of a model call only: two calls, one inside the other, may be one
        ("started_ns", pa.int64()),
        ("side", pa.string()),  # 'app' or 'server': who saw it
        ("is_model_call", pa.bool_()),
        ("is_tool_run", pa.bool_()),
        ("response", pa.string()),  # the id that the model server gave its answer; joins what app and server saw
        ("conversation", pa.string()),
        ("episode", pa.string()),  # the app's own id of the episode
        ("task", pa.string()),
        ("subject", pa.string()),
        ("has_content", pa.bool_()),  # it holds messages and answer itself
        ("content", pa.int64()),  # null for what is neither a model call nor a tool run
        ("is_new", pa.bool_()),
        ("read_order", pa.int64()),
    ]
)
# One row a message event: a log record that holds a part of a model call.
EVENTS = pa.schema(
    [
        ("trace", pa.string()),
        ("span", pa.string()),  # the call's
        ("at_ns", pa.int64()),
        ("fingerprint", pa.int64()),  # of the content: what came twice is one event
        ("content", pa.int64()),
        ("is_new", pa.bool_()),
        ("read_order", pa.int64()),
    ]
)
# One row for each of the app's own ids (a ticket, an order) on a span: an outcome may name the trace by it.
JOIN_KEYS = pa.schema([("trace", pa.string()), ("join_key", pa.string())])
# One row an outcome record.
OUTCOMES = pa.schema(
    [
        ("event_id", pa.string()),
        ("fingerprint", pa.int64()),  # of what it says, without id and time
        ("target_kind", pa.string()),  # trace_id, response_id, conversation_id, episode_id or join_key
        ("target", pa.string()),
        ("turn", pa.int64()),  # of a conversation; -1 for the conversation as a whole, and for every other kind
        ("slot", pa.string()),  # what it replaces or is replaced by: JSON of [target, name, source kind, source id]
        ("occurred_ns", pa.int64()),
        ("received_ns", pa.int64()),
        ("content", pa.int64()),
        ("retracts", pa.bool_()),
        ("is_new", pa.bool_()),
        ("read_order", pa.int64()),
    ]
)

RAW = {"raw_spans": SPANS, "raw_events": EVENTS, "raw_join_keys": JOIN_KEYS, "raw_outcomes": OUTCOMES}

_outcome_values = attrgetter(*(item.name for item in fields(Outcome)))
_values_without_id_and_time = attrgetter(
    *(item.name for item in fields(Outcome) if item.name not in ("event_id", "occurred_at_ns"))
)


class RawTables:
    """The raw tables in a DuckDB file that spills to disk, and a spool of contents beside it."""

    def __init__(self, folder: Path, *, memory_mib: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / _DATABASE
        self._path.unlink(missing_ok=True)
        options: dict[str, Any] = {
            "memory_limit": f"{memory_mib}MB",
            "temp_directory": str(folder / "spill"),
            "threads": _THREADS,
        }
        self.db = duckdb.connect(str(self._path), config=options)
        self.contents = Spool(folder / _CONTENTS)
        self._read_order = count()
        self._waiting: dict[str, list[tuple[Any, ...]]] = {table: [] for table in RAW}
        for table, schema in RAW.items():
            empty = schema.empty_table()  # noqa: F841 -- DuckDB finds it by name
            self.db.execute(f"CREATE TABLE {table} AS SELECT * FROM empty")  # noqa: S608 -- names are literals above

    # --- filling --------------------------------------------------------------------------------------------------------
    @contextmanager
    def one_commit(self) -> Iterator[None]:
        """Write every row that is added inside in one transaction: a killed night builds its tables anew anyway."""
        self.db.execute("BEGIN")
        yield
        for table in RAW:
            self._insert(table)
        self.db.execute("COMMIT")

    def add_span(self, row: SpanRow, *, is_new: bool) -> None:
        """Add a span and the join keys on it; only model calls and tool runs have contents that are read again."""
        content = self.contents.put(row.attributes) if row.is_model_call or row.is_tool_run else None
        self._add("raw_spans", _span_columns(row), content, is_new, next(self._read_order))
        for columns in _join_key_columns(row):
            self._add("raw_join_keys", columns)

    def add_event(self, event: EventRow, *, is_new: bool) -> None:
        """Add a message event."""
        columns = (event.trace_id, event.span_id, min(event.at_ns, LAST_NS), _fingerprint(event.content))
        self._add("raw_events", columns, self.contents.put(event.content), is_new, next(self._read_order))

    def add_outcome(self, outcome: Outcome, received_ns: int, *, is_new: bool) -> None:
        """Add an outcome that was received at `received_ns`."""
        content = self.contents.put(_outcome_values(outcome))
        columns = _outcome_columns(outcome, min(received_ns, LAST_NS), content)
        self._add("raw_outcomes", columns, is_new, next(self._read_order))

    def _add(self, table: str, columns: tuple[Any, ...], *more: Any) -> None:
        rows = self._waiting[table]
        rows.append((*columns, *more))
        if len(rows) >= _BATCH_ROWS:
            self._insert(table)

    def _insert(self, table: str) -> None:
        rows, schema = self._waiting[table], RAW[table]
        if rows:
            columns = zip(zip(*rows, strict=True), schema.types, strict=True)
            arrays = [pa.array(column, kind) for column, kind in columns]
            batch = pa.Table.from_arrays(arrays, schema=schema)  # noqa: F841 -- DuckDB finds it by name
            self.db.execute(f"INSERT INTO {table} SELECT * FROM batch")  # noqa: S608 -- names are literals
            rows.clear()

    # --- merging --------------------------------------------------------------------------------------------------------
    def merge(self, folder: Path) -> None:
        """Take over the tables that another process filled in `folder`, after everything that is here so far."""
        base = self.contents.adopt(folder / _CONTENTS)
        path = folder / _DATABASE
        quoted = str(path).replace("'", "''")
        self.db.execute(f"ATTACH '{quoted}' AS filled (READ_ONLY)")
        for table, schema in RAW.items():
            # `base` makes a place valid in this spool. It also grows with every merge and is above every number that
            # this or an earlier process gave its rows, so the same addition puts the rows of the later ranges after
            # those of the earlier.
            moved = ", ".join(f"{name} + {base} AS {name}" for name in ("content", "read_order") if name in schema.names)
            columns = f"* REPLACE ({moved})" if moved else "*"
            self.db.execute(f"INSERT INTO {table} SELECT {columns} FROM filled.{table}")  # noqa: S608 -- literals
        self.db.execute("DETACH filled")
        path.unlink()

    def keep(self) -> None:
        """Close the files and leave them, for another process to merge."""
        self.db.close()
        self.contents.keep()

    def close(self) -> None:
        """Close the files and delete them."""
        self.db.close()
        self._path.unlink(missing_ok=True)
        self.contents.close()


def outcome_from(content: tuple[Any, ...]) -> Outcome:
    """The outcome whose content `add_outcome` put into the spool."""
    return Outcome(*content)


def _span_columns(row: SpanRow) -> tuple[Any, ...]:
    """The columns of a span up to `has_content`."""
    return (
        row.trace_id,
        row.span_id,
        row.parent_id if row.is_model_call else None,
        min(row.started_ns, LAST_NS),
        row.side,
        row.is_model_call,
        row.is_tool_run,
        row.response_id,
        row.conversation,
        row.episode_id,
        row.task,
        row.subject,
        row.has_content,
    )


def _outcome_columns(outcome: Outcome, received_ns: int, content: int) -> tuple[Any, ...]:
    """The columns of an outcome up to `retracts`."""
    kind = outcome.target_kind
    target = outcome.target[kind]
    occurred_ns = outcome.occurred_at_ns if outcome.occurred_at_ns is not None else received_ns
    return (
        outcome.id,
        _fingerprint(_values_without_id_and_time(outcome)),
        kind,
        canonical(target) if isinstance(target, Mapping) else target,
        outcome.target.get("turn", -1),
        canonical([outcome.target, outcome.name, outcome.source_kind, outcome.source_id]),
        min(occurred_ns, received_ns + _CLOCK_SKEW_NS),
        received_ns,
        content,
        outcome.op == "retract",
    )


def _join_key_columns(row: SpanRow) -> Iterator[tuple[str, str]]:
    """The app's own ids on a span, spelled as outcomes spell them when they name a trace."""
    for name, value in row.attributes.items():
        if name.startswith(names.JOIN_KEY_PREFIX):
            namespace = name.removeprefix(names.JOIN_KEY_PREFIX)
            for key in value if isinstance(value, list) else [value]:
                if isinstance(key, str):
                    yield row.trace_id, canonical({"ns": namespace, "id": key})


def _fingerprint(value: object) -> int:
    """A short hash of plain values, to recognize copies of the same content."""
    return int.from_bytes(blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=_FINGERPRINT_BYTES).digest())
