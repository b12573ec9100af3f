"""Log records to stream records: outcomes to their own topic, all others by trace."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from nightschool import semconv
from nightschool.errors import RecordError
from nightschool.outcomes.record import Outcome, from_log_record
from nightschool_collector.store.spans import NO_TRACE, reject
from nightschool_collector.store.splitting import MAX_ITEM_BYTES, SplitRequest, Splitter
from nightschool_collector.store.wire import scopes


@dataclass(frozen=True, slots=True)
class SplitLogs:
    """What became of a request of log records."""

    outcomes: list[Outcome]
    other: SplitRequest


def split_logs(request: bytes) -> SplitLogs:
    """`gen_ai.evaluation.result` events parsed as outcomes; every other log record kept as it is."""
    outcomes: list[Outcome] = []
    splitter, rejected, num_others = Splitter(), [], 0
    for shared, items in scopes(request):
        for tag, start, end in items:
            log, fault = LogRecord.FromString(request[start:end]), ""
            if log.event_name == semconv.GEN_AI_EVALUATION_RESULT:
                try:
                    outcomes.append(from_log_record(log))
                except RecordError as error:
                    fault = str(error)
            elif splitter.add(_trace_key(log), shared, request[tag:end]):
                num_others += 1
            else:
                fault = f"a log record has more than {MAX_ITEM_BYTES} bytes: shorten it"
            if fault:
                rejected.append(reject(fault, log.trace_id, shared, request[tag:end]))
    records = [(key or _content_key(value), value) for key, value in splitter.records()]
    return SplitLogs(outcomes, SplitRequest(records, num_others, rejected))


def _trace_key(log: LogRecord) -> bytes:
    """The trace id in hex; empty for a log record outside any trace, which is allowed."""
    known = len(log.trace_id) == len(NO_TRACE) and log.trace_id != NO_TRACE
    return log.trace_id.hex().encode() if known else b""


def _content_key(value: bytes) -> bytes:
    """A key for records without a trace, so that they are not all in one partition."""
    return hashlib.sha256(value).hexdigest()[:32].encode()
