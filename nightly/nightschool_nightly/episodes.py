"""Step 2 of a night: episodes out of the frozen ranges. Read, deduplicate, join outcomes, group by trace.

The join is DuckDB's, over narrow columns in a file of its own that spills to disk; contents wait in a spool beside it, so memory
does not grow with the day. Every query has a total order. An outcome finds its trace by trace id, response id, episode id or
conversation; a server's span finds the app's by response id. All of it inside one tenant: a trace id is the client's and proves
nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count, groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import duckdb
import pyarrow as pa
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool import semconv as names
from nightschool.episode import Episode, ModelCall, OutcomeHistory, SampledTokens
from nightschool.errors import RecordError
from nightschool.outcomes import Outcome, canonical, from_log_record
from nightschool.stream import StoredRecord, Stream
from nightschool_nightly.dialects import SpanRow, attributes_of, context_of, read_messages, read_spans, request_of, tools_of
from nightschool_nightly.night_manifest import FrozenRange, NightManifest
from nightschool_nightly.spool import Spool

_BATCH = 20_000
_READ_ROWS = 2048
_CLOCK_SKEW_NS = 5 * 60 * 10**9
_LAST_NS = 2**63 - 1 - _CLOCK_SKEW_NS  # OTLP times have 64 bits without a sign, columns 63
_DEFAULT_TASK = "default"

_SPANS = pa.schema(
    [
        ("trace", pa.string()),
        ("span", pa.string()),
        ("started", pa.int64()),
        ("side", pa.string()),
        ("model_call", pa.bool_()),
        ("response", pa.string()),
        ("conversation", pa.string()),
        ("episode", pa.string()),
        ("task", pa.string()),
        ("subject", pa.string()),
        ("content", pa.int64()),
        ("new", pa.bool_()),
        ("place", pa.int64()),
    ]
)
_OUTCOMES = pa.schema(
    [
        ("event", pa.string()),
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


@dataclass(slots=True)
class ReadCounts:
    """What became of every record read; each drop has a name."""

    span_records: int = 0
    outcome_records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


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


class EpisodeStore:
    """The joined records of one night. `build` fills it, `episodes` reads it in order of trace id."""

    def __init__(self, folder: Path, *, memory_mib: int = 512) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "episodes.duckdb"
        self._path.unlink(missing_ok=True)
        self.counts = ReadCounts()
        options: dict[str, Any] = {"memory_limit": f"{memory_mib}MB", "temp_directory": str(folder / "spill"), "threads": 2}
        self._db = duckdb.connect(str(self._path), config=options)
        self._contents = Spool(folder / "contents")
        self._places = count()
        for table, schema in (("raw_spans", _SPANS), ("raw_outcomes", _OUTCOMES)):
            empty = schema.empty_table()  # noqa: F841 -- DuckDB finds it by name
            self._db.execute(f"CREATE TABLE {table} AS SELECT * FROM empty")  # noqa: S608 -- names are literals above

    def close(self) -> None:
        """Drop the store and its files."""
        self._db.close()
        self._path.unlink(missing_ok=True)
        self._contents.close()

    # --- filling --------------------------------------------------------------------------------------------------------
    def build(self, stream: Stream, manifest: NightManifest) -> None:
        """Read the frozen ranges, keep the tenant's records, and join."""
        spans: list[tuple[Any, ...]] = []
        outcomes: list[tuple[Any, ...]] = []
        self._db.execute("BEGIN")  # one commit: a night that is killed builds its store anew
        for part in manifest.ranges:
            for record in stream.read(part.topic, part.partition, part.start, part.end):
                if not self._is_ours(record, manifest.tenant):
                    continue
                if part.topic == names.TOPIC_SPANS:
                    spans += self._span_rows(record, part)
                else:
                    outcomes += self._outcome_rows(record, part)
                if len(spans) >= _BATCH:
                    self._insert("raw_spans", _SPANS, spans)
                if len(outcomes) >= _BATCH:
                    self._insert("raw_outcomes", _OUTCOMES, outcomes)
        self._insert("raw_spans", _SPANS, spans)
        self._insert("raw_outcomes", _OUTCOMES, outcomes)
        self._db.execute("COMMIT")
        self._join()

    def _is_ours(self, record: StoredRecord, tenant: str) -> bool:
        """The collector's header says whose a record is; one without it (a foreign collector) is of the tenant its resource names."""
        header = record.headers.get(names.HEADER_TENANT)
        if header is not None:
            return header == tenant.encode()
        owner = _resource_tenant(record)
        if owner is None:
            self.counts.dropped["record-without-tenant"] += 1
        return owner == tenant

    def _span_rows(self, record: StoredRecord, part: FrozenRange) -> Iterator[tuple[Any, ...]]:
        self.counts.span_records += 1
        try:
            for row in read_spans(record.value):
                content = self._contents.put(row.attributes) if row.is_model_call else None
                yield _span_columns(row, content, new=record.offset >= part.new_from, place=next(self._places))
        except RecordError:
            self.counts.dropped["undecodable-span-record"] += 1

    def _outcome_rows(self, record: StoredRecord, part: FrozenRange) -> Iterator[tuple[Any, ...]]:
        self.counts.outcome_records += 1
        try:
            request = ExportLogsServiceRequest.FromString(record.value)
            for resource in request.resource_logs:
                for scope in resource.scope_logs:
                    for log in scope.log_records:
                        outcome = from_log_record(log)
                        content, received_ns = self._contents.put(_outcome_values(outcome)), log.observed_time_unix_nano
                        new, place = record.offset >= part.new_from, next(self._places)
                        yield _outcome_columns(outcome, content, received_ns, new=new, place=place)
        except (RecordError, DecodeError):
            self.counts.dropped["undecodable-outcome-record"] += 1

    def _insert(self, table: str, schema: pa.Schema, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            columns = zip(zip(*rows, strict=True), schema.types, strict=True)
            batch = pa.Table.from_arrays([pa.array(column, kind) for column, kind in columns], schema=schema)  # noqa: F841 -- DuckDB finds it by name
            self._db.execute(f"INSERT INTO {table} SELECT * FROM batch")  # noqa: S608 -- names are literals
            rows.clear()

    def _join(self) -> None:
        for statement in _JOIN:
            self._db.execute(statement)
        self.counts.dropped.update({name: int(count) for name, count in self._db.execute(_DROPS).fetchall() if count})

    # --- reading --------------------------------------------------------------------------------------------------------
    def episodes(self, tenant: str) -> Iterator[BuiltEpisode]:
        """Every trace that holds a model call, in order of trace id."""
        attached = groupby(self._rows(_READ_OUTCOMES), key=itemgetter(0))
        following = next(attached, None)
        for trace, rows in groupby(map(_CallRow._make, self._rows(_READ_CALLS)), key=itemgetter(0)):
            calls, outcomes, new = list(rows), tuple[OutcomeHistory, ...](), False
            if following is not None and following[0] == trace:
                outcomes, new = self._outcomes(following[1])
                following = next(attached, None)
            episode = self._episode(tenant, calls, outcomes)
            if episode is not None:
                yield BuiltEpisode(episode, new or any(call.new for call in calls))

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query as they come; each query has a cursor of its own."""
        with self._db.cursor() as cursor:
            cursor.execute(query)
            while batch := cursor.fetchmany(_READ_ROWS):
                yield from batch

    def _outcomes(self, rows: Iterable[tuple[Any, ...]]) -> tuple[tuple[OutcomeHistory, ...], bool]:
        """The outcomes of one trace, and whether any of its slots is new; a retracted slot is no outcome, but may be new."""
        histories, new = [], False
        for _, slot in groupby(rows, key=itemgetter(1)):
            revisions = list(slot)
            new = new or any(row[2] for row in revisions)
            if not revisions[-1][3]:
                history = tuple(Outcome(*self._contents.get(row[4])) for row in revisions)
                histories.append(OutcomeHistory(history[-1], history))
        return tuple(histories), new

    def _episode(self, tenant: str, rows: Sequence[_CallRow], outcomes: tuple[OutcomeHistory, ...]) -> Episode | None:
        calls = [call for row in rows if (call := self._model_call(row)) is not None]
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
            outcomes=outcomes,
        )

    def _model_call(self, row: _CallRow) -> ModelCall | None:
        attributes: dict[str, Any] = self._contents.get(row.content)
        server: dict[str, Any] = {}
        if row.server is not None:
            server = attributes if row.server == row.content else self._contents.get(row.server)
        messages = context_of(attributes)
        answers = read_messages(attributes.get(names.GEN_AI_OUTPUT_MESSAGES))
        if messages is None or not answers:
            self.counts.dropped["call-without-content"] += 1
            return None
        reasons = attributes.get(names.GEN_AI_RESPONSE_FINISH_REASONS)
        return ModelCall(
            span_id=row.span,
            messages=messages,
            answer=answers[0],
            response_id=row.response,
            tools=tools_of(attributes),
            request=request_of(attributes),
            finish_reason=str(reasons[0]) if isinstance(reasons, list) and reasons else None,
            tokens=_tokens(server),
            release=server.get(names.POLICY_VERSION, attributes.get(names.POLICY_VERSION)),
        )


# Spans: the first copy of each (trace, span). A server's span of a call that the app saw too is matched by response id and only
# adds tokens and release to it. Outcomes: the first copy of each event; slots by last writer; targets resolved to one trace.
_JOIN = (
    """CREATE TABLE spans AS SELECT * FROM raw_spans
       QUALIFY row_number() OVER (PARTITION BY trace, span ORDER BY place) = 1""",
    """CREATE TABLE app_calls AS SELECT response, min(trace) AS trace, min(span) AS span, count(*) AS copies
       FROM spans WHERE model_call AND side = 'app' AND response IS NOT NULL GROUP BY response""",
    """CREATE TABLE server_calls AS SELECT s.*, a.trace AS app_trace, a.span AS app_span
       FROM spans s LEFT JOIN app_calls a ON s.response = a.response AND a.copies = 1
       WHERE s.model_call AND s.side = 'server'
       QUALIFY row_number() OVER (PARTITION BY coalesce(s.response, s.trace || s.span) ORDER BY s.place) = 1""",
    """CREATE TABLE calls AS
       SELECT c.trace, c.span, c.started, c.response, c.conversation, c.episode, c.task, c.subject, c.content,
              s.content AS server, c.new OR coalesce(s.new, false) AS new
       FROM spans c LEFT JOIN server_calls s ON s.app_trace = c.trace AND s.app_span = c.span
       WHERE c.model_call AND c.side = 'app'
       UNION ALL
       SELECT trace, span, started, response, conversation, episode, task, subject, content, content, new
       FROM server_calls WHERE app_trace IS NULL""",
    """CREATE TABLE turns AS SELECT conversation, trace, row_number() OVER (PARTITION BY conversation ORDER BY first, trace) - 1 AS turn
       FROM (SELECT conversation, trace, min(started) AS first FROM calls WHERE conversation IS NOT NULL GROUP BY conversation, trace)""",
    """CREATE TABLE aliases AS
       SELECT DISTINCT 'trace_id' AS kind, trace AS target, trace, -1 AS turn FROM calls
       UNION SELECT 'response_id', response, trace, -1 FROM calls WHERE response IS NOT NULL
       UNION SELECT 'episode_id', episode, trace, -1 FROM calls WHERE episode IS NOT NULL
       UNION SELECT 'conversation_id', conversation, trace, -1 FROM turns
       UNION SELECT 'conversation_id', conversation, trace, turn FROM turns""",
    """CREATE TABLE outcomes AS SELECT * FROM raw_outcomes
       QUALIFY row_number() OVER (PARTITION BY event ORDER BY place) = 1""",
    """CREATE TABLE slots AS SELECT slot, kind, target, turn,
              arg_max(retracted, row(occurred, received, place)) AS retracted
       FROM outcomes GROUP BY slot, kind, target, turn""",
    """CREATE TABLE joined AS SELECT s.slot, count(DISTINCT a.trace) AS traces, min(a.trace) AS trace
       FROM slots s LEFT JOIN aliases a ON a.kind = s.kind AND a.target = s.target AND a.turn = s.turn
       GROUP BY s.slot""",
)
_DROPS = """
    SELECT 'duplicate-span', (SELECT count(*) FROM raw_spans) - (SELECT count(*) FROM spans)
    UNION ALL SELECT 'duplicate-outcome', (SELECT count(*) FROM raw_outcomes) - (SELECT count(*) FROM outcomes)
    UNION ALL SELECT 'outcome-without-trace', count(*) FROM joined WHERE traces = 0
    UNION ALL SELECT 'ambiguous-outcome', count(*) FROM joined WHERE traces > 1
    UNION ALL SELECT 'retracted-outcome', count(*) FROM slots WHERE retracted
    ORDER BY 1"""
_READ_CALLS = """
    SELECT trace, new, span, started, response, conversation, task, subject, content, server
    FROM calls ORDER BY trace, started, span"""
_READ_OUTCOMES = """
    SELECT j.trace, o.slot, o.new, o.retracted, o.content FROM joined j JOIN outcomes o USING (slot) WHERE j.traces = 1
    ORDER BY j.trace, o.slot, o.occurred, o.received, o.place"""
_outcome_values = attrgetter(*(item.name for item in fields(Outcome)))


def _resource_tenant(record: StoredRecord) -> str | None:
    """The one tenant that the resources of a record without our header name; None when they name none, several, or not all do."""
    try:
        if record.topic == names.TOPIC_SPANS:
            resources = [part.resource for part in ExportTraceServiceRequest.FromString(record.value).resource_spans]
        else:
            resources = [part.resource for part in ExportLogsServiceRequest.FromString(record.value).resource_logs]
    except DecodeError:
        return None
    tenants = {attributes_of(resource.attributes).get(names.TENANT_ID) for resource in resources}
    owner = tenants.pop() if len(tenants) == 1 else None
    return owner if isinstance(owner, str) else None


def _span_columns(row: SpanRow, content: int | None, *, new: bool, place: int) -> tuple[Any, ...]:
    return (
        row.trace_id,
        row.span_id,
        min(row.started_ns, _LAST_NS),
        row.side,
        row.is_model_call,
        row.response_id,
        row.conversation,
        row.episode_id,
        row.task,
        row.subject,
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


def _tokens(server: Mapping[str, Any]) -> SampledTokens | None:
    """What the server sampled; None unless prompt, completion and log-probabilities are all there and fit."""
    prompt, completion, logprobs = (
        server.get(name) for name in (names.PROMPT_TOKEN_IDS, names.COMPLETION_TOKEN_IDS, names.COMPLETION_LOGPROBS)
    )
    if not _are_ids(prompt) or not prompt or not _are_ids(completion) or not _are_logprobs(logprobs):
        return None
    if len(completion) != len(logprobs):
        return None
    return SampledTokens(tuple(prompt), tuple(completion), tuple(map(float, logprobs)))


def _are_ids(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _are_logprobs(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and all(type(item) in (int, float) and math.isfinite(item) for item in value)
