"""Log records to stream records: outcomes to their topic, the rest by trace."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from nightschool import semconv
from nightschool.errors import RecordError
from nightschool.outcomes import Outcome, from_log_record
from nightschool_collector.spans import NO_TRACE, Sorted
from nightschool_collector.splitting import MAX_ITEM_BYTES, Splitter, shared_by


@dataclass(frozen=True, slots=True)
class SortedLogs:
    """What became of a request of log records."""

    outcomes: list[Outcome]
    other: Sorted


def sort_logs(request: ExportLogsServiceRequest) -> SortedLogs:
    """`gen_ai.evaluation.result` events checked as outcomes; every other log record kept as it is."""
    outcomes: list[Outcome] = []
    splitter, rejected, reason = Splitter(), 0, ""
    for resource_logs in request.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            shared = shared_by(resource_logs, scope_logs)
            for log in scope_logs.log_records:
                fault = ""
                if log.event_name == semconv.GEN_AI_EVALUATION_RESULT:
                    try:
                        outcomes.append(from_log_record(log))
                    except RecordError as error:
                        fault = str(error)
                elif not splitter.add(_trace_key(log), shared, log):
                    fault = f"a log record has more than {MAX_ITEM_BYTES} bytes: shorten it"
                if fault:
                    rejected += 1
                    reason = reason or fault
    records = [(key or _content_key(value), value) for key, value in splitter.records()]
    return SortedLogs(outcomes, Sorted(records, rejected, reason))


def _trace_key(log: LogRecord) -> bytes:
    """The trace id in hex; empty for a log record outside any trace, which is quite in order."""
    known = len(log.trace_id) == len(NO_TRACE) and log.trace_id != NO_TRACE
    return log.trace_id.hex().encode() if known else b""


def _content_key(value: bytes) -> bytes:
    """A key for records of no trace, so that they do not all stand in one partition."""
    return hashlib.sha256(value).hexdigest()[:32].encode()
