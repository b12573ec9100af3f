"""Episodes out of the joined tables: for each trace its calls, tool runs and outcomes, with their contents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeGuard, TypeVar

from nightschool import semconv as names
from nightschool.episode import Episode, OutcomeHistory, RecordedCall, SampledTokens, ToolRun
from nightschool_nightly.dialects.call import context_of, finish_reason_of, model_of, request_of, tool_run_of, tools_of, usage_of
from nightschool_nightly.dialects.messages import read_messages
from nightschool_nightly.dialects.record import with_events
from nightschool_nightly.episodes.counts import ReadCounts
from nightschool_nightly.episodes.edits import edited_call, measure_edit, named_call
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.episodes.tables import RawTables, outcome_from

_FETCHED_ROWS = 2048  # rows that each of the four queries holds in memory at a time
_DEFAULT_TASK = "default"
_trace_of, _slot_of = attrgetter("trace"), attrgetter("slot")
Row = TypeVar("Row", bound="_CallRow | _EventRow | _ToolRunRow | _OutcomeRow")
_TOKEN_NAMES = {names.PROMPT_TOKEN_IDS, names.COMPLETION_TOKEN_IDS, names.COMPLETION_LOGPROBS}


@dataclass(frozen=True, slots=True)
class BuiltEpisode:
    """An episode, and whether any of it is new: read by no night that ended."""

    episode: Episode
    is_new: bool


# The four queries are read in step, trace by trace: each is in order of trace id, its first column.
class _CallRow(NamedTuple):
    """A model call, as the columns of `_CALLS`."""

    trace: str
    is_new: bool
    span: str
    started_ns: int
    response: str | None
    conversation: str | None
    task: str | None
    subject: str | None
    content: int
    """Place of the app's attributes in the spool; of the server's own where no app saw the call."""
    server_content: int | None
    """Place of the server's attributes; None when no server recorded the call."""


_CALLS = """
    SELECT trace, is_new, span, started_ns, response, conversation, task, subject, content, server_content
    FROM calls ORDER BY trace, started_ns, span"""


class _EventRow(NamedTuple):
    """A message event of a call, as the columns of `_EVENTS`."""

    trace: str
    is_new: bool
    span: str
    content: int


_EVENTS = "SELECT trace, is_new, span, content FROM events ORDER BY trace, span, at_ns, read_order"


class _ToolRunRow(NamedTuple):
    """A tool that ran, as the columns of `_TOOL_RUNS`."""

    trace: str
    span: str
    content: int


_TOOL_RUNS = """
    SELECT trace, span, content FROM spans WHERE is_tool_run AND trace IN (SELECT trace FROM calls)
    ORDER BY trace, started_ns, span"""


class _OutcomeRow(NamedTuple):
    """An outcome record that belongs to one trace, as the columns of `_OUTCOMES`; those of a slot are in order."""

    trace: str
    is_new: bool
    slot: str
    received_ns: int
    content: int


_OUTCOMES = """
    SELECT t.trace, o.is_new, o.slot, o.received_ns, o.content FROM slot_traces t JOIN outcomes o USING (slot)
    WHERE t.num_traces = 1 ORDER BY t.trace, o.slot, o.occurred_ns, o.received_ns, o.read_order"""


class _ByTrace(Generic[Row]):
    """The rows of a query, trace by trace, read in step with another query: only one trace's rows are held."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._groups = groupby(rows, key=_trace_of)
        self._next = next(self._groups, None)

    def of(self, trace: str) -> list[Row]:
        """The rows of `trace`; to be asked for in ascending order."""
        while self._next is not None and self._next[0] < trace:
            self._next = next(self._groups, None)
        if self._next is None or self._next[0] != trace:
            return []
        rows = list(self._next[1])
        self._next = next(self._groups, None)
        return rows


class Assembler:
    """Makes the episodes of a tenant out of its joined tables, and counts what has to be left out of tonight's."""

    def __init__(self, tenant: str, tables: RawTables, counts: ReadCounts) -> None:
        self._tenant, self._tables, self._counts = tenant, tables, counts
        self._is_new = True

    def episodes(self) -> Iterator[BuiltEpisode]:
        """Every trace that holds a model call with content, in order of trace id."""
        outcomes_by, events_by, tool_runs_by = (
            _ByTrace(self._rows(_OUTCOMES, _OutcomeRow)),
            _ByTrace(self._rows(_EVENTS, _EventRow)),
            _ByTrace(self._rows(_TOOL_RUNS, _ToolRunRow)),
        )
        for trace, group in groupby(self._rows(_CALLS, _CallRow), key=_trace_of):
            calls, events, outcomes = list(group), events_by.of(trace), outcomes_by.of(trace)
            self._is_new = any(row.is_new for rows in (calls, events, outcomes) for row in rows)
            episode = self._episode(calls, events, self._histories(outcomes), self._tool_runs(tool_runs_by.of(trace)))
            if episode is not None:
                yield BuiltEpisode(episode, self._is_new)

    def _rows(self, query: str, kind: type[Row]) -> Iterator[Row]:
        """The rows of a query as they come; each query has a cursor of its own."""
        with self._tables.db.cursor() as cursor:
            cursor.execute(query)
            while batch := cursor.fetchmany(_FETCHED_ROWS):
                yield from map(kind._make, batch)

    def _episode(
        self,
        rows: Sequence[_CallRow],
        events: Iterable[_EventRow],
        histories: Sequence[OutcomeHistory],
        tool_runs: tuple[ToolRun, ...],
    ) -> Episode | None:
        messages: dict[str, list[Any]] = {}
        for event in events:
            messages.setdefault(event.span, []).append(self._tables.contents.get(event.content))
        calls = [call for row in rows if (call := self._call(row, messages.get(row.span, []))) is not None]
        if not calls:
            return None
        return Episode(
            tenant=self._tenant,
            trace_id=rows[0].trace,
            task=next((row.task for row in rows if row.task), _DEFAULT_TASK),
            subject=next((row.subject for row in rows if row.subject), None),
            conversation=next((row.conversation for row in rows if row.conversation), None),
            started_ns=min(row.started_ns for row in rows),
            calls=tuple(calls),
            outcomes=tuple(self._about_call(history, calls) for history in histories if history.current.op == "set"),
            retracted=tuple(history for history in histories if history.current.op != "set"),
            tool_runs=tool_runs,
        )

    def _drop(self, reason: DropReason) -> None:
        """Count what is left out, if it is of tonight; an earlier night has counted the rest."""
        if self._is_new:
            self._counts.drop(reason)

    # --- calls and tools ------------------------------------------------------------------------------------------------
    def _call(self, row: _CallRow, events: list[Any]) -> RecordedCall | None:
        """The call of one row, with its message events; None, and counted, when its content was not captured."""
        attributes: dict[str, Any] = self._tables.contents.get(row.content)
        attributes = with_events(attributes, events) if events else attributes
        server: dict[str, Any] = {}
        if row.server_content is not None:
            server = attributes if row.server_content == row.content else self._tables.contents.get(row.server_content)
        if names.REDACTION_VERSION in attributes and server.keys() & _TOKEN_NAMES:
            # The ids still spell the text before it was redacted; without them a night renders the messages, which are
            # redacted.
            server = {name: value for name, value in server.items() if name not in _TOKEN_NAMES}
            self._drop(DropReason.TOKEN_IDS_OF_REDACTED_CALL)
        messages = context_of(attributes)
        answers = read_messages(attributes.get(names.GEN_AI_OUTPUT_MESSAGES))
        if messages is None or not answers:
            self._drop(DropReason.CALL_WITHOUT_CONTENT)
            return None
        return RecordedCall(
            span_id=row.span,
            messages=messages,
            answer=answers[0],
            response_id=row.response,
            tools=tools_of(attributes),
            request=request_of(attributes) | request_of(server),  # where both say it, the server saw what arrived
            finish_reason=finish_reason_of(attributes),
            model=model_of(attributes),
            usage=usage_of(attributes),
            tokens=_tokens(server),
            release=server.get(names.RELEASE, attributes.get(names.RELEASE)),
            is_chat=attributes.get(names.GEN_AI_OPERATION_NAME) != "text_completion",
        )

    def _tool_runs(self, rows: Iterable[_ToolRunRow]) -> tuple[ToolRun, ...]:
        runs = (tool_run_of(row.span, self._tables.contents.get(row.content)) for row in rows)
        return tuple(run for run in runs if run is not None)

    # --- outcomes -------------------------------------------------------------------------------------------------------
    def _histories(self, rows: Iterable[_OutcomeRow]) -> list[OutcomeHistory]:
        """The slots of one trace with all their records, also the slots that were retracted."""
        histories = []
        for _, slot in groupby(rows, key=_slot_of):
            records = list(slot)
            revisions = tuple(outcome_from(self._tables.contents.get(row.content)) for row in records)
            histories.append(OutcomeHistory(revisions[-1], revisions, received_ns=tuple(row.received_ns for row in records)))
        return histories

    def _about_call(self, history: OutcomeHistory, calls: Sequence[RecordedCall]) -> OutcomeHistory:
        """A slot with the call that it is about, and how much a human changed of that call's answer."""
        outcome, edit, about = history.current, None, None
        if outcome.final_answer is not None and outcome.op == "set" and not outcome.is_demonstration:
            edited = edited_call(outcome, calls)
            edit = measure_edit(edited.answer.text, outcome.final_answer) if edited else None
            if edit is None:
                self._drop(DropReason.EDIT_NOT_MEASURED)
            elif outcome.original_sha256 is not None and edited is not None:
                about = edited.span_id
        if about is None:
            about = named_call(outcome.target, calls)
        return OutcomeHistory(outcome, history.revisions, history.received_ns, about, edit)


# --- recorded tokens ----------------------------------------------------------------------------------------------------
def _tokens(server: Mapping[str, Any]) -> SampledTokens | None:
    """What the server sampled; None unless prompt, completion and log-probabilities are all there and fit together."""
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
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)  # a bool is no id


def _are_logprobs(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and all(type(item) in (int, float) and math.isfinite(item) for item in value)
