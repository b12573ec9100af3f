"""Step 2 of a night: episodes out of the frozen ranges. Read, deduplicate, join outcomes, group by trace.

The join is DuckDB's, over narrow columns in a file of its own that spills to disk; contents wait in a spool beside it, so memory
does not grow with the day. An outcome finds its trace by trace id, response id, episode id, join key
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
from nightschool.outcomes.record import Outcome, from_log_record
from nightschool.stream import StoredRecord, Stream
from nightschool_nightly.dialects import (
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
from nightschool_nightly.episodes.dead_letters import DeadLetters
from nightschool_nightly.episodes.edits import edited_call, measure_edit, named_call
from nightschool_nightly.episodes.erasures import erase, frozen_erasures
from nightschool_nightly.episodes.join import DROPS, JOIN, READ_CALLS, READ_EVENTS, READ_OUTCOMES, READ_TOOL_RUNS
from nightschool_nightly.episodes.parallel_reading import Filled, Helper, how_many, share_out
from nightschool_nightly.episodes.spool import Spool
from nightschool_nightly.episodes.tables import (
    EVENTS,
    JOINS,
    LAST_NS,
    OUTCOMES,
    RAW,
    SPANS,
    join_columns,
    outcome_columns,
    span_columns,
)
from nightschool_nightly.freeze.manifest import FrozenRange, NightManifest
from nightschool_nightly.freeze.settling import window_of

_BATCH = 20_000
_READ_ROWS = 2048
_DEFAULT_TASK = "default"
_TOKEN_NAMES = {names.PROMPT_TOKEN_IDS, names.COMPLETION_TOKEN_IDS, names.COMPLETION_LOGPROBS}
UNKNOWN_DIALECT = "unknown-dialect"
_MOST_UNKNOWN = 30

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
        for table, schema in RAW.items():
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
                    self._insert("raw_spans", SPANS, spans)
                if len(events) >= _BATCH:
                    self._insert("raw_events", EVENTS, events)
                if len(outcomes) >= _BATCH:
                    self._insert("raw_outcomes", OUTCOMES, outcomes)
                if len(self._joins) >= _BATCH:
                    self._insert("raw_joins", JOINS, self._joins)
            self.dead.end_of(part, num_read)
        self._insert("raw_spans", SPANS, spans)
        self._insert("raw_events", EVENTS, events)
        self._insert("raw_outcomes", OUTCOMES, outcomes)
        self._insert("raw_joins", JOINS, self._joins)
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
        for table, schema in RAW.items():
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
                yield span_columns(row, content, new=new, place=next(self._places))
                self._joins += join_columns(row)
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
                yield event.trace_id, event.span_id, min(event.at_ns, LAST_NS), digest, content, new, place
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
        return outcome_columns(outcome, content, received_ns, new=new, place=next(self._places))

    def _insert(self, table: str, schema: pa.Schema, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            columns = zip(zip(*rows, strict=True), schema.types, strict=True)
            batch = pa.Table.from_arrays([pa.array(column, kind) for column, kind in columns], schema=schema)  # noqa: F841 -- DuckDB finds it by name
            self._db.execute(f"INSERT INTO {table} SELECT * FROM batch")  # noqa: S608 -- names are literals
            rows.clear()

    def _join(self, *, closed_ns: int) -> None:
        """Join, and count what was left out; an outcome received before `closed_ns` waits for its trace no longer."""
        for statement in JOIN:
            self._db.execute(statement)
        counts = self._db.execute(DROPS, {"closed": closed_ns}).fetchall()
        self.counts.dropped.update({name: int(count) for name, count in counts if count})

    # --- reading --------------------------------------------------------------------------------------------------------
    def episodes(self, tenant: str) -> Iterator[BuiltEpisode]:
        """Every trace that holds a model call, in order of trace id."""
        attached, said, ran = (_ByTrace(self._rows(query)) for query in (READ_OUTCOMES, READ_EVENTS, READ_TOOL_RUNS))
        for trace, rows in groupby(map(_CallRow._make, self._rows(READ_CALLS)), key=itemgetter(0)):
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
            release=server.get(names.RELEASE, attributes.get(names.RELEASE)),
            is_chat=attributes.get(names.GEN_AI_OPERATION_NAME) != "text_completion",
        )


_outcome_values = attrgetter(*(item.name for item in fields(Outcome)))


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
