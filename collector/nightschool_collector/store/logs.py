"""Log records to stream records: outcomes to their own topic, all others by trace."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from nightschool import semconv
from nightschool.errors import RecordError
from nightschool.outcomes.record import Outcome, from_log_record
from nightschool_collector.request.turns import STEP_ITEMS, in_steps
from nightschool_collector.store.checking import count_parts
from nightschool_collector.store.cleaning import Cleaning
from nightschool_collector.store.spans import NO_TRACE, key_of
from nightschool_collector.store.splitting import MAX_ITEM_BYTES, Splitter
from nightschool_collector.store.wire import content_of, fields, scopes

_TRACE_ID, _EVENT_NAME = 9, 12  # fields of a log record
_EVALUATION = semconv.GEN_AI_EVALUATION_RESULT.encode()
_MAX_OUTCOME_PARTS = 4096  # an outcome has about ten attributes; its texts may be long, but are one part each


@dataclass(frozen=True, slots=True)
class SplitLogs:
    """What became of a request of log records."""

    outcomes: list[Outcome]
    other: Splitter


def split_logs(request: bytes, cleaning: Cleaning | None = None) -> SplitLogs:
    """`gen_ai.evaluation.result` events parsed as outcomes; every other log record kept as it is, but redacted."""
    outcomes: list[Outcome] = []
    splitter = Splitter(keyless=_content_key)
    for shared, items in scopes(request):
        if cleaning is not None:
            shared = cleaning.frame(shared)
        for tag, start, end in in_steps(items, STEP_ITEMS):
            trace_id, event_name = _about(request, start, end)
            log = request[tag:end]
            if event_name == _EVALUATION:
                try:
                    outcomes.append(_outcome(log))
                except RecordError as error:
                    reason = str(error)
                    if cleaning is not None:
                        log, reason = cleaning.refused_outcome(log, reason)
                    splitter.reject(reason, reason, key_of(trace_id), shared, log)
                continue
            if cleaning is not None and cleaning.next_place < end:
                log = cleaning.item(log, tag, end)
            if not splitter.add(_trace_key(trace_id), shared, log):
                fault = f"a log record has more than {MAX_ITEM_BYTES} bytes: shorten it"
                splitter.reject("size", fault, key_of(trace_id), shared, log)
    return SplitLogs(outcomes, splitter)


def _about(request: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    """Trace id and event name of a log record; of a repeated field the last counts."""
    trace_id = event_name = b""
    for number, at, stop in fields(request, start, end):
        if number == _TRACE_ID:
            trace_id = request[at:stop]
        elif number == _EVENT_NAME:
            event_name = request[at:stop]
    return trace_id, event_name


def _outcome(log: bytes) -> Outcome:
    """The outcome in a log record (a field on the wire)."""
    content = content_of(log)
    if count_parts(content, LogRecord, enough=_MAX_OUTCOME_PARTS) > _MAX_OUTCOME_PARTS:
        raise RecordError(f"an outcome has more than {_MAX_OUTCOME_PARTS} attributes and values; it needs about ten")
    return from_log_record(LogRecord.FromString(content))


def _trace_key(trace_id: bytes) -> bytes:
    """The trace id in hex; empty for a log record outside any trace, which is allowed."""
    known = len(trace_id) == len(NO_TRACE) and trace_id != NO_TRACE
    return trace_id.hex().encode() if known else b""


def _content_key(value: bytes) -> bytes:
    """A key for records without a trace, so that they are not all in one partition."""
    return hashlib.sha256(value).hexdigest()[:32].encode()
