"""Step 2 of a night: episodes out of the frozen ranges. Read, deduplicate, join outcomes, group by trace.

The join is DuckDB's, over narrow columns in a file of its own that spills to disk; contents wait in a spool beside it, so memory
does not grow with the day. Every query has a total order. An outcome finds its trace by trace id, response id, episode id, join key
or conversation; a server's span finds the app's by response id. All of it inside one tenant: a trace id is the client's and proves
nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from itertools import count, groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import duckdb
import pyarrow as pa
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from nightschool import semconv as names
from nightschool.episode import Episode, ModelCall, OutcomeHistory, SampledTokens, ToolRun
from nightschool.errors import RecordError
from nightschool.outcomes import Outcome, canonical, from_log_record
from nightschool.stream import StoredRecord, Stream
from nightschool_nightly.dead_letters import DeadLetters
from nightschool_nightly.dialects import (
    SpanRow,
    attributes_of,
    context_of,
    finish_reason_of,
    model_of,
    read_events,
    read_logs,
    read_messages,
    read_spans,
    request_of,
    tool_run_of,
    tools_of,
    usage_of,
    with_events,
)
from nightschool_nightly.edits import edited_call, measure_edit, named_call
from nightschool_nightly.erasures import erase, frozen_erasures
from nightschool_nightly.lateness import window_of
from nightschool_nightly.night_manifest import FrozenRange, NightManifest
from nightschool_nightly.parallel_reading import Filled, Helper, how_many, share_out
from nightschool_nightly.spool import Spool

_BATCH = 20_000
_READ_ROWS = 2048
_CLOCK_SKEW_NS = 5 * 60 * 10**9
_LAST_NS = 2**63 - 1 - _CLOCK_SKEW_NS  # OTLP times have 64 bits without a sign, columns 63
_DEFAULT_TASK = "default"
_TOKEN_NAMES = {names.PROMPT_TOKEN_IDS, names.COMPLETION_TOKEN_IDS, names.COMPLETION_LOGPROBS}
UNKNOWN_DIALECT = "unknown-dialect"
_MOST_UNKNOWN = 30

_SPANS = pa.schema(
    [
        ("trace", pa.string()),
        ("span", pa.string()),
        ("parent", pa.string()),
        ("started", pa.int64()),
        ("side", pa.string()),
        ("model_call", pa.bool_()),
        ("tool_run", pa.bool_()),
        ("response", pa.string()),
        ("conversation", pa.string()),
        ("episode", pa.string()),
        ("task", pa.string()),
        ("subject", pa.string()),
        ("told", pa.bool_()),
        ("content", pa.int64()),
        ("new", pa.bool_()),
        ("place", pa.int64()),
    ]
)
_EVENTS = pa.schema(
    [
        ("trace", pa.string()),
        ("span", pa.string()),
        ("said_at", pa.int64()),
        ("digest", pa.int64()),
        ("content", pa.int64()),
        ("new", pa.bool_()),
        ("place", pa.int64()),
    ]
)
_JOINS = pa.schema([("trace", pa.string()), ("target", pa.string())])
_OUTCOMES = pa.schema(
    [
        ("event", pa.string()),
        ("said", pa.int64()),
        ("kind", pa.string()),
        ("target", pa.string()),
        ("turn", pa.int64()),
        ("slot", pa.string()),
        ("occurred", pa.int64()),
        ("received", pa.int64()),
        ("content", pa.int64()),
        ("retracted", pa.bool_()),
        ("new", pa.bool_()),
        ("place", pa.int64()),
    ]
)

_RAW = {"raw_spans": _SPANS, "raw_events": _EVENTS, "raw_outcomes": _OUTCOMES, "raw_joins": _JOINS}
_TABLES, _CONTENTS = "episodes.duckdb", "contents"


@dataclass(slots=True)
class ReadCounts:
    """What became of every record read; each drop has a name."""

    span_records: int = 0
    log_records: int = 0
    outcome_records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def unknown_dialect(self, made_by: str) -> None:
        """Count a span that no dialect reads by who made it, one by one up to a limit: the names are the client's."""
        name = f"{UNKNOWN_DIALECT} ({made_by})"
        if name not in self.dropped and sum(known.startswith(UNKNOWN_DIALECT) for known in self.dropped) >= _MOST_UNKNOWN:
            name = f"{UNKNOWN_DIALECT} (others)"
        self.dropped[name] += 1

    def add(self, other: ReadCounts) -> None:
        """Count what `other` counted as well."""
        self.span_records += other.span_records
        self.log_records += other.log_records
        self.outcome_records += other.outcome_records
        self.dropped += other.dropped


@dataclass(frozen=True, slots=True)
class BuiltEpisode:
    """An episode, and whether any of it is new evidence since the last published night."""

    episode: Episode
    new: bool


class _CallRow(NamedTuple):
    """One model call as the join leaves it."""

    trace: str
    new: bool
    span: str
    started: int
    response: str | None
    conversation: str | None
    task: str | None
    subject: str | None
    content: int
    """Place of the app's attributes in the spool; the server's own where no app saw the call."""
    server: int | None
    """Place of the server's attributes."""


class _ByTrace:
    """The rows of a query that is read in step with another one, both in order of trace id, their first column."""

    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self._groups = groupby(rows, key=itemgetter(0))
        self._next = next(self._groups, None)

    def of(self, trace: str) -> list[tuple[Any, ...]]:
        """The rows of `trace`; asked for in ascending order."""
        while self._next is not None and self._next[0] < trace:
            self._next = next(self._groups, None)
        if self._next is None or self._next[0] != trace:
            return []
        rows = list(self._next[1])
        self._next = next(self._groups, None)
        return rows


class EpisodeStore:
    """The joined records of one night. `build` fills it, `episodes` reads it in order of trace id."""

    def __init__(self, folder: Path, *, memory_mib: int = 512) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / _TABLES
        self._path.unlink(missing_ok=True)
        self.counts = ReadCounts()
        self.dead = DeadLetters()
        options: dict[str, Any] = {"memory_limit": f"{memory_mib}MB", "temp_directory": str(folder / "spill"), "threads": 2}
        self._db = duckdb.connect(str(self._path), config=options)
        self._contents = Spool(folder / _CONTENTS)
        self._places = count()
        self._joins: list[tuple[Any, ...]] = []
        for table, schema in _RAW.items():
            empty = schema.empty_table()  # noqa: F841 -- DuckDB finds it by name
            self._db.execute(f"CREATE TABLE {table} AS SELECT * FROM empty")  # noqa: S608 -- names are literals above

    def close(self) -> None:
        """Drop the store and its files."""
        self._db.close()
        self._path.unlink(missing_ok=True)
        self._contents.close()

    # --- filling --------------------------------------------------------------------------------------------------------
    def build(self, stream: Stream, manifest: NightManifest, *, processes: int | None = None) -> None:
        """Read the frozen ranges, keep the tenant's records, and join. `NightError` when too many records cannot be read.

        A large day is read by several processes where the stream allows it, `processes` of them if that is given.
        """
        parts = [part for part in manifest.ranges if part.topic != names.TOPIC_ERASURE]
        first, *others = share_out(parts, processes or how_many(stream, parts)) or [[]]
        with ExitStack() as helping:
            helpers = [
                helping.enter_context(Helper(self._path.parent / f"helper-{number}", stream, manifest.tenant, share))
                for number, share in enumerate(others, start=1)
            ]
            self.fill(stream, manifest.tenant, first)
            for helper in helpers:
                self._merge(helper.result())
        self.dead.check()
        erase(self._db, manifest.tenant, frozen_erasures(stream, manifest), self.counts.dropped)
        self._join(closed_ns=(manifest.frozen_at_ms - window_of(manifest.settings)) * 1_000_000)

    def fill(self, stream: Stream, tenant: str, parts: Iterable[FrozenRange]) -> None:
        """Read `parts` and keep the tenant's records, without joining them yet."""
        spans: list[tuple[Any, ...]] = []
        events: list[tuple[Any, ...]] = []
        outcomes: list[tuple[Any, ...]] = []
        self._db.execute("BEGIN")  # one commit: a night that is killed builds its store anew
        for part in parts:
            num_read = 0
            for record in stream.read(part.topic, part.partition, part.start, part.end):
                if not self._is_ours(record, tenant):
                    continue
                num_read += 1
                if part.topic == names.TOPIC_SPANS:
                    spans += self._span_rows(record, part, outcomes)
                elif part.topic == names.TOPIC_LOGS:
                    events += self._event_rows(record, part, outcomes)
                else:
                    outcomes += self._outcome_rows(record, part)
                if len(spans) >= _BATCH:
                    self._insert("raw_spans", _SPANS, spans)
                if len(events) >= _BATCH:
                    self._insert("raw_events", _EVENTS, events)
                if len(outcomes) >= _BATCH:
                    self._insert("raw_outcomes", _OUTCOMES, outcomes)
                if len(self._joins) >= _BATCH:
                    self._insert("raw_joins", _JOINS, self._joins)
            self.dead.end_of(part, num_read)
        self._insert("raw_spans", _SPANS, spans)
        self._insert("raw_events", _EVENTS, events)
        self._insert("raw_outcomes", _OUTCOMES, outcomes)
        self._insert("raw_joins", _JOINS, self._joins)
        self._db.execute("COMMIT")

    def keep(self) -> None:
        """Close a store that was only filled, for another one to merge."""
        self._db.close()
        self._contents.keep()

    def _merge(self, filled: Filled) -> None:
        """Take over what a helper read, after everything read so far."""
        self.counts.add(filled.counts)
        self.dead.add_all(filled.dead)
        base = self._contents.adopt(filled.folder / _CONTENTS)
        path = str(filled.folder / _TABLES).replace("'", "''")
        self._db.execute(f"ATTACH '{path}' AS helper (READ_ONLY)")
        for table, schema in _RAW.items():
            moved = ", ".join(f"{name} + {base} AS {name}" for name in ("content", "place") if name in schema.names)
            columns = f"* REPLACE ({moved})" if moved else "*"
            self._db.execute(f"INSERT INTO {table} SELECT {columns} FROM helper.{table}")  # noqa: S608 -- names are literals
        self._db.execute("DETACH helper")
        (filled.folder / _TABLES).unlink()

    def _is_ours(self, record: StoredRecord, tenant: str) -> bool:
        """The collector's header says whose a record is; one without it (a foreign collector) is of the tenant its resource names."""
        header = record.headers.get(names.HEADER_TENANT)
        if header is not None:
            return header == tenant.encode()
        try:
            owner = _resource_tenant(record)
        except DecodeError:
            return True  # nobody can say whose it is: every night reads it, and finds that it cannot
        if owner is None:
            self.counts.dropped["record-without-tenant"] += 1
        return owner == tenant

    def _poison(self, record: StoredRecord, part: FrozenRange, reason: str) -> None:
        kind = {names.TOPIC_SPANS: "span", names.TOPIC_LOGS: "log"}.get(part.topic, "outcome")
        self.counts.dropped[f"undecodable-{kind}-record"] += 1
        self.dead.add(record, reason, new=record.offset >= part.new_from)

    def _span_rows(self, record: StoredRecord, part: FrozenRange, outcomes: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """The rows of a span record; what its spans say of outcomes goes to `outcomes`."""
        self.counts.span_records += 1
        new = record.offset >= part.new_from
        try:
            for row in read_spans(record.value):
                content = self._contents.put(row.attributes) if row.is_model_call or row.is_tool_run else None
                yield _span_columns(row, content, new=new, place=next(self._places))
                self._joins += _join_columns(row)
                outcomes += (self._outcome_row(said, said.occurred_at_ns or row.started_ns, new=new) for said in row.outcomes)
                if row.unknown_dialect is not None:
                    self.counts.unknown_dialect(row.unknown_dialect)
        except RecordError as error:
            self._poison(record, part, str(error))

    def _event_rows(self, record: StoredRecord, part: FrozenRange, outcomes: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """The message events of a log record; an official collector leaves outcomes among them, which go to `outcomes`."""
        self.counts.log_records += 1
        new = record.offset >= part.new_from
        try:
            for event in read_events(record.value):
                digest = int.from_bytes(blake2b(repr(event.content).encode(), digest_size=7).digest())
                content, place = self._contents.put(event.content), next(self._places)
                yield event.trace_id, event.span_id, min(event.at_ns, _LAST_NS), digest, content, new, place
            outcomes += self._outcomes_in(record, part)
        except RecordError as error:
            self._poison(record, part, str(error))

    def _outcome_rows(self, record: StoredRecord, part: FrozenRange) -> Iterator[tuple[Any, ...]]:
        self.counts.outcome_records += 1
        try:
            yield from self._outcomes_in(record, part)
        except RecordError as error:
            self._poison(record, part, str(error))

    def _outcomes_in(self, record: StoredRecord, part: FrozenRange) -> Iterator[tuple[Any, ...]]:
        """The outcomes of a record of logs; `RecordError` at the end if one of them was none, since the others count all the same."""
        fault: RecordError | None = None
        for log in read_logs(record.value):
            if part.topic == names.TOPIC_LOGS and log.event_name != names.GEN_AI_EVALUATION_RESULT:
                continue
            try:
                outcome = from_log_record(log)
            except RecordError as error:
                fault = fault or error
            else:
                yield self._outcome_row(outcome, _received_ns(record, log), new=record.offset >= part.new_from)
        if fault is not None:
            raise fault

    def _outcome_row(self, outcome: Outcome, received_ns: int, *, new: bool) -> tuple[Any, ...]:
        content = self._contents.put(_outcome_values(outcome))
        return _outcome_columns(outcome, content, received_ns, new=new, place=next(self._places))

    def _insert(self, table: str, schema: pa.Schema, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            columns = zip(zip(*rows, strict=True), schema.types, strict=True)
            batch = pa.Table.from_arrays([pa.array(column, kind) for column, kind in columns], schema=schema)  # noqa: F841 -- DuckDB finds it by name
            self._db.execute(f"INSERT INTO {table} SELECT * FROM batch")  # noqa: S608 -- names are literals
            rows.clear()

    def _join(self, *, closed_ns: int) -> None:
        """Join, and count what was left out; an outcome received before `closed_ns` waits for its trace no longer."""
        for statement in _JOIN:
            self._db.execute(statement)
        counts = self._db.execute(_DROPS, {"closed": closed_ns}).fetchall()
        self.counts.dropped.update({name: int(count) for name, count in counts if count})

    # --- reading --------------------------------------------------------------------------------------------------------
    def episodes(self, tenant: str) -> Iterator[BuiltEpisode]:
        """Every trace that holds a model call, in order of trace id."""
        attached, said, ran = (_ByTrace(self._rows(query)) for query in (_READ_OUTCOMES, _READ_EVENTS, _READ_TOOL_RUNS))
        for trace, rows in groupby(map(_CallRow._make, self._rows(_READ_CALLS)), key=itemgetter(0)):
            calls, events = list(rows), said.of(trace)
            outcomes, new = self._outcomes(attached.of(trace))
            episode = self._episode(tenant, calls, events, outcomes, self._tool_runs(ran.of(trace)))
            if episode is not None:
                yield BuiltEpisode(episode, new or any(call.new for call in calls) or any(event[2] for event in events))

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query as they come; each query has a cursor of its own."""
        with self._db.cursor() as cursor:
            cursor.execute(query)
            while batch := cursor.fetchmany(_READ_ROWS):
                yield from batch

    def _outcomes(self, rows: Iterable[tuple[Any, ...]]) -> tuple[list[OutcomeHistory], bool]:
        """The slots of one trace, those that were emptied among them, and whether any of them is new."""
        histories, new = [], False
        for _, slot in groupby(rows, key=itemgetter(1)):
            revisions = list(slot)
            new = new or any(row[2] for row in revisions)
            history = tuple(Outcome(*self._contents.get(row[3])) for row in revisions)
            histories.append(OutcomeHistory(history[-1], history, received_ns=tuple(row[4] for row in revisions)))
        return histories, new

    def _about(self, history: OutcomeHistory, calls: Sequence[ModelCall]) -> OutcomeHistory:
        """A slot with the call it is about, and what the human left of that call's answer."""
        outcome, figures, about = history.current, None, None
        if outcome.final_answer is not None and outcome.op == "set" and not outcome.is_demonstration:
            edited = edited_call(outcome, calls)
            figures = measure_edit(edited.answer.text, outcome.final_answer) if edited else None
            if figures is None:
                self.counts.dropped["edit-not-measured"] += 1
            elif outcome.original_sha256 is not None and edited is not None:
                about = edited.span_id
        if about is None:
            about = named_call(outcome.target, calls)
        return OutcomeHistory(outcome, history.revisions, history.received_ns, about, figures)

    def _tool_runs(self, rows: Iterable[tuple[Any, ...]]) -> tuple[ToolRun, ...]:
        runs = (tool_run_of(span, self._contents.get(content)) for _, span, content in rows)
        return tuple(run for run in runs if run is not None)

    def _episode(
        self,
        tenant: str,
        rows: Sequence[_CallRow],
        events: Sequence[tuple[Any, ...]],
        outcomes: Sequence[OutcomeHistory],
        tool_runs: tuple[ToolRun, ...],
    ) -> Episode | None:
        said: dict[str, list[Any]] = {}
        for _, span, _, content in events:
            said.setdefault(span, []).append(self._contents.get(content))
        calls = [call for row in rows if (call := self._model_call(row, said.get(row.span))) is not None]
        if not calls:
            return None
        return Episode(
            tenant=tenant,
            trace_id=rows[0].trace,
            task=next((row.task for row in rows if row.task), _DEFAULT_TASK),
            subject=next((row.subject for row in rows if row.subject), None),
            conversation=next((row.conversation for row in rows if row.conversation), None),
            started_ns=min(row.started for row in rows),
            calls=tuple(calls),
            outcomes=tuple(self._about(history, calls) for history in outcomes if history.current.op == "set"),
            retracted=tuple(history for history in outcomes if history.current.op != "set"),
            tool_runs=tool_runs,
        )

    def _model_call(self, row: _CallRow, said: list[Any] | None) -> ModelCall | None:
        """The call of one row; `said` is what log records say of it."""
        attributes: dict[str, Any] = self._contents.get(row.content)
        attributes = with_events(attributes, said) if said else attributes
        server: dict[str, Any] = {}
        if row.server is not None:
            server = attributes if row.server == row.content else self._contents.get(row.server)
        if names.REDACTION_VERSION in attributes and server.keys() & _TOKEN_NAMES:
            # The ids still spell what the text no longer says; rendered anew they fit it.
            server = {name: value for name, value in server.items() if name not in _TOKEN_NAMES}
            self.counts.dropped["token-ids-of-redacted-call"] += 1
        messages = context_of(attributes)
        answers = read_messages(attributes.get(names.GEN_AI_OUTPUT_MESSAGES))
        if messages is None or not answers:
            self.counts.dropped["call-without-content"] += 1
            return None
        return ModelCall(
            span_id=row.span,
            messages=messages,
            answer=answers[0],
            response_id=row.response,
            tools=tools_of(attributes),
            request=request_of(attributes),
            finish_reason=finish_reason_of(attributes),
            model=model_of(attributes),
            usage=usage_of(attributes),
            tokens=_tokens(server),
            release=server.get(names.POLICY_VERSION, attributes.get(names.POLICY_VERSION)),
            is_chat=attributes.get(names.GEN_AI_OPERATION_NAME) != "text_completion",
        )


# Spans: the first copy of each (trace, span). Where two instrumentations, one inside the other, recorded one call (one trace, and one
# response id or one the parent of the other), the inner one with content is the call; the other only names user, session and task, as
# any span of a trace may. A server's span of a call that the app saw too is matched by response id and only adds tokens and release
# to it. Outcomes: the first copy of each event; slots by last writer; targets resolved to one trace.
_JOIN = (
    """CREATE TABLE spans AS SELECT * FROM raw_spans
       QUALIFY row_number() OVER (PARTITION BY trace, span ORDER BY place) = 1""",
    """CREATE TABLE again AS
       SELECT DISTINCT o.trace, CASE WHEN o.told AND NOT i.told THEN i.span ELSE o.span END AS span FROM spans o JOIN spans i
       ON i.trace = o.trace AND i.parent = o.span WHERE o.model_call AND o.side = 'app' AND i.model_call AND i.side = 'app'""",
    """UPDATE spans SET model_call = false WHERE (trace, span) IN (SELECT (trace, span) FROM again)""",
    """INSERT INTO again SELECT trace, span FROM spans WHERE model_call AND side = 'app' AND response IS NOT NULL
       QUALIFY row_number() OVER (PARTITION BY trace, response ORDER BY told DESC, started DESC, span) > 1""",
    """UPDATE spans SET model_call = false WHERE (trace, span) IN (SELECT (trace, span) FROM again)""",
    """CREATE TABLE named AS SELECT trace, arg_min(conversation, row(started, span)) AS conversation,
              arg_min(episode, row(started, span)) AS episode, arg_min(task, row(started, span)) AS task,
              arg_min(subject, row(started, span)) AS subject
       FROM spans WHERE NOT model_call AND coalesce(conversation, episode, task, subject) IS NOT NULL GROUP BY trace""",
    """CREATE TABLE app_calls AS SELECT response, min(trace) AS trace, min(span) AS span, count(*) AS copies
       FROM spans WHERE model_call AND side = 'app' AND response IS NOT NULL GROUP BY response""",
    """CREATE TABLE server_calls AS SELECT s.*, a.trace AS app_trace, a.span AS app_span
       FROM spans s LEFT JOIN app_calls a ON s.response = a.response AND a.copies = 1
       WHERE s.model_call AND s.side = 'server'
       QUALIFY row_number() OVER (PARTITION BY coalesce(s.response, s.trace || s.span) ORDER BY s.place) = 1""",
    """CREATE TABLE seen_calls AS
       SELECT c.trace, c.span, c.started, c.response, c.conversation, c.episode, c.task, c.subject, c.content,
              s.content AS server, c.new OR coalesce(s.new, false) AS new
       FROM spans c LEFT JOIN server_calls s ON s.app_trace = c.trace AND s.app_span = c.span
       WHERE c.model_call AND c.side = 'app'
       UNION ALL
       SELECT trace, span, started, response, conversation, episode, task, subject, content, content, new
       FROM server_calls WHERE app_trace IS NULL""",
    """CREATE TABLE calls AS
       SELECT c.* REPLACE (coalesce(c.conversation, n.conversation) AS conversation, coalesce(c.episode, n.episode) AS episode,
                           coalesce(c.task, n.task) AS task, coalesce(c.subject, n.subject) AS subject)
       FROM seen_calls c LEFT JOIN named n USING (trace)""",
    """CREATE TABLE events AS SELECT e.* FROM raw_events e SEMI JOIN calls c ON e.trace = c.trace AND e.span = c.span
       QUALIFY row_number() OVER (PARTITION BY e.trace, e.span, e.said_at, e.digest ORDER BY e.place) = 1""",
    """CREATE TABLE turns AS SELECT conversation, trace, row_number() OVER (PARTITION BY conversation ORDER BY first, trace) - 1 AS turn
       FROM (SELECT conversation, trace, min(started) AS first FROM calls WHERE conversation IS NOT NULL GROUP BY conversation, trace)""",
    """CREATE TABLE aliases AS
       SELECT DISTINCT 'trace_id' AS kind, trace AS target, trace, -1 AS turn FROM calls
       UNION SELECT 'response_id', response, trace, -1 FROM calls WHERE response IS NOT NULL
       UNION SELECT 'episode_id', episode, trace, -1 FROM calls WHERE episode IS NOT NULL
       UNION SELECT 'join_key', j.target, j.trace, -1 FROM raw_joins j SEMI JOIN calls c ON j.trace = c.trace
       UNION SELECT 'conversation_id', conversation, trace, -1 FROM turns
       UNION SELECT 'conversation_id', conversation, trace, turn FROM turns""",
    """CREATE TABLE outcomes AS SELECT * FROM raw_outcomes
       QUALIFY row_number() OVER (PARTITION BY event ORDER BY place) = 1""",
    """CREATE TABLE slots AS SELECT slot, kind, target, turn,
              arg_max(retracted, row(occurred, received, place)) AS retracted, max(received) AS received
       FROM outcomes GROUP BY slot, kind, target, turn""",
    """CREATE TABLE joined AS SELECT s.slot, count(DISTINCT a.trace) AS traces, min(a.trace) AS trace
       FROM slots s LEFT JOIN aliases a ON a.kind = s.kind AND a.target = s.target AND a.turn = s.turn
       GROUP BY s.slot""",
)
_DROPS = """
    SELECT 'duplicate-span', (SELECT count(*) FROM raw_spans) - (SELECT count(*) FROM spans)
    UNION ALL SELECT 'call-recorded-twice', count(*) FROM again
    UNION ALL SELECT 'duplicate-event',
        (SELECT count(*) FROM raw_events e SEMI JOIN calls c ON e.trace = c.trace AND e.span = c.span) - (SELECT count(*) FROM events)
    UNION ALL SELECT 'event-without-call', count(*) FROM raw_events e ANTI JOIN calls c ON e.trace = c.trace AND e.span = c.span
    UNION ALL SELECT 'duplicate-outcome', (SELECT count(*) FROM raw_outcomes r JOIN outcomes o USING (event, said))
        - (SELECT count(*) FROM outcomes)
    UNION ALL SELECT 'event-id-used-twice', count(*) FROM raw_outcomes r JOIN outcomes o USING (event) WHERE r.said != o.said
    UNION ALL SELECT 'outcome-without-trace', count(*) FROM joined JOIN slots USING (slot) WHERE traces = 0 AND received >= $closed
    UNION ALL SELECT 'orphaned-outcome', count(*) FROM joined JOIN slots USING (slot) WHERE traces = 0 AND received < $closed
    UNION ALL SELECT 'ambiguous-outcome', count(*) FROM joined WHERE traces > 1
    UNION ALL SELECT 'retracted-outcome', count(*) FROM slots WHERE retracted
    ORDER BY 1"""
_READ_CALLS = """
    SELECT trace, new, span, started, response, conversation, task, subject, content, server
    FROM calls ORDER BY trace, started, span"""
_READ_EVENTS = "SELECT trace, span, new, content FROM events ORDER BY trace, span, said_at, place"
_READ_TOOL_RUNS = """
    SELECT trace, span, content FROM spans WHERE tool_run AND trace IN (SELECT trace FROM calls) ORDER BY trace, started, span"""
_READ_OUTCOMES = """
    SELECT j.trace, o.slot, o.new, o.content, o.received FROM joined j JOIN outcomes o USING (slot) WHERE j.traces = 1
    ORDER BY j.trace, o.slot, o.occurred, o.received, o.place"""
_outcome_values = attrgetter(*(item.name for item in fields(Outcome)))
_said_values = attrgetter(*(item.name for item in fields(Outcome) if item.name not in ("event_id", "occurred_at_ns")))


def _received_ns(record: StoredRecord, log: LogRecord) -> int:
    """When an outcome was received: our collector wrote it into the log record; of a foreign one only the stream's clock is trusted."""
    if names.HEADER_TENANT in record.headers and log.observed_time_unix_nano:
        return log.observed_time_unix_nano
    return record.timestamp_ms * 1_000_000


def _resource_tenant(record: StoredRecord) -> str | None:
    """The one tenant that the resources of a record without our header name; None when they name none, several, or not all do."""
    if record.topic == names.TOPIC_SPANS:
        resources = [part.resource for part in ExportTraceServiceRequest.FromString(record.value).resource_spans]
    else:
        resources = [part.resource for part in ExportLogsServiceRequest.FromString(record.value).resource_logs]
    tenants = {attributes_of(resource.attributes).get(names.TENANT_ID) for resource in resources}
    owner = tenants.pop() if len(tenants) == 1 else None
    return owner if isinstance(owner, str) else None


def _span_columns(row: SpanRow, content: int | None, *, new: bool, place: int) -> tuple[Any, ...]:
    return (
        row.trace_id,
        row.span_id,
        row.parent_id if row.is_model_call else None,
        min(row.started_ns, _LAST_NS),
        row.side,
        row.is_model_call,
        row.is_tool_run,
        row.response_id,
        row.conversation,
        row.episode_id,
        row.task,
        row.subject,
        row.has_content,
        content,
        new,
        place,
    )


def _outcome_columns(outcome: Outcome, content: int, received_ns: int, *, new: bool, place: int) -> tuple[Any, ...]:
    kind = outcome.target_kind
    target = outcome.target[kind]
    received_ns = min(received_ns, _LAST_NS)
    occurred = outcome.occurred_at_ns if outcome.occurred_at_ns is not None else received_ns
    return (
        outcome.id,
        _fingerprint(outcome),
        kind,
        canonical(target) if isinstance(target, Mapping) else target,
        outcome.target.get("turn", -1),
        canonical([outcome.target, outcome.name, outcome.source_kind, outcome.source_id]),
        min(occurred, received_ns + _CLOCK_SKEW_NS),
        received_ns,
        content,
        outcome.op == "retract",
        new,
        place,
    )


def _fingerprint(outcome: Outcome) -> int:
    """What an outcome says, without its id and time: a copy that the collector received later says the same."""
    said = repr(_said_values(outcome))
    return int.from_bytes(blake2b(said.encode("utf-8", "surrogatepass"), digest_size=7).digest())


def _join_columns(row: SpanRow) -> list[tuple[str, str]]:
    """The names of the app's own that a span carries, as outcomes target them."""
    found = []
    for name, value in row.attributes.items():
        if name.startswith(names.JOIN_KEY_PREFIX):
            ids = value if isinstance(value, list) else [value]
            ns = name.removeprefix(names.JOIN_KEY_PREFIX)
            found += [(row.trace_id, canonical({"ns": ns, "id": id})) for id in ids if isinstance(id, str)]  # noqa: A001
    return found


def _tokens(server: Mapping[str, Any]) -> SampledTokens | None:
    """What the server sampled; None unless prompt, completion and log-probabilities are all there and fit."""
    prompt, completion, logprobs = (
        server.get(name) for name in (names.PROMPT_TOKEN_IDS, names.COMPLETION_TOKEN_IDS, names.COMPLETION_LOGPROBS)
    )
    if not _are_ids(prompt) or not prompt or not _are_ids(completion) or not _are_logprobs(logprobs):
        return None
    if len(completion) != len(logprobs):
        return None
    tokenizer = server.get(names.TOKENIZER)
    tokenizer = tokenizer if isinstance(tokenizer, str) else None
    return SampledTokens(tuple(prompt), tuple(completion), tuple(map(float, logprobs)), tokenizer)


def _are_ids(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _are_logprobs(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and all(type(item) in (int, float) and math.isfinite(item) for item in value)
