"""Records of the stream into rows of the raw tables: whose a record is, what it holds, and what cannot be read."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from nightschool import semconv as names
from nightschool.errors import RecordError
from nightschool.otlp.attributes import attributes_of
from nightschool.outcomes.record import from_log_record
from nightschool.stream import StoredRecord, Stream
from nightschool_nightly.dialects.record import read_events, read_logs, read_spans
from nightschool_nightly.episodes.counts import ReadCounts
from nightschool_nightly.episodes.dead_letters import DeadLetters
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.episodes.tables import RawTables
from nightschool_nightly.freeze.manifest import FrozenRange

_UNDECODABLE = {
    names.TOPIC_SPANS: DropReason.UNDECODABLE_SPAN_RECORD,
    names.TOPIC_LOGS: DropReason.UNDECODABLE_LOG_RECORD,
    names.TOPIC_OUTCOMES: DropReason.UNDECODABLE_OUTCOME_RECORD,
}


class RecordReader:
    """Reads one tenant's records into raw tables, counts them, and remembers those it cannot read."""

    def __init__(self, tenant: str, tables: RawTables, counts: ReadCounts, dead: DeadLetters) -> None:
        self._tenant, self._tables, self._counts, self._dead = tenant, tables, counts, dead

    def read(self, stream: Stream, parts: Iterable[FrozenRange]) -> None:
        """Read `parts` to their ends; `NightError` when nothing of one of them can be read."""
        add = {names.TOPIC_SPANS: self._add_spans, names.TOPIC_LOGS: self._add_logs, names.TOPIC_OUTCOMES: self._add_outcomes}
        with self._tables.one_commit():
            for part in parts:
                num_read = 0
                for record in stream.read(part.topic, part.partition, part.start, part.end):
                    is_new = record.offset >= part.new_from
                    if not self._is_ours(record, is_new):
                        continue
                    num_read += 1
                    try:
                        add[part.topic](record, is_new)
                    except RecordError as error:
                        if is_new:
                            self._counts.drop(_UNDECODABLE[part.topic])
                        self._dead.add(record, str(error), new=is_new)
                self._dead.end_of(part, num_read)

    def _is_ours(self, record: StoredRecord, is_new: bool) -> bool:
        """Whether a record is the tenant's, by our collector's header; by its resource, if another one wrote it."""
        header = record.headers.get(names.HEADER_TENANT)
        if header is not None:
            return header == self._tenant.encode()
        try:
            owner = _resource_tenant(record)
        except DecodeError:
            return True  # it cannot be said whose it is, so the nights of all tenants count it as unreadable
        if owner is None and is_new:
            self._counts.drop(DropReason.RECORD_WITHOUT_TENANT)
        return owner == self._tenant

    # --- topic by topic; `RecordError` when a record cannot be read --------------------------------------------------------
    def _add_spans(self, record: StoredRecord, is_new: bool) -> None:
        """Add the spans of a record, and the outcomes that stand on them."""
        self._counts.span_records += 1
        for row in read_spans(record.value):
            self._tables.add_span(row, is_new=is_new)
            for outcome in row.outcomes:
                self._tables.add_outcome(outcome, outcome.occurred_at_ns or row.started_ns, is_new=is_new)
            if row.unknown_dialect is not None and is_new:
                self._counts.drop_unknown_dialect(row.unknown_dialect)

    def _add_logs(self, record: StoredRecord, is_new: bool) -> None:
        """Add the message events of a record, and the outcomes that an official collector leaves among the logs."""
        self._counts.log_records += 1
        for event in read_events(record.value):
            self._tables.add_event(event, is_new=is_new)
        self._add_outcomes_in(record, is_new)

    def _add_outcomes(self, record: StoredRecord, is_new: bool) -> None:
        self._counts.outcome_records += 1
        self._add_outcomes_in(record, is_new)

    def _add_outcomes_in(self, record: StoredRecord, is_new: bool) -> None:
        """Add the outcomes among log records. Valid ones count even if another is not: the error comes at the end."""
        fault: RecordError | None = None
        for log in read_logs(record.value):
            if record.topic == names.TOPIC_LOGS and log.event_name != names.GEN_AI_EVALUATION_RESULT:
                continue
            try:
                outcome = from_log_record(log)
            except RecordError as error:
                fault = fault or error
            else:
                self._tables.add_outcome(outcome, _received_ns(record, log), is_new=is_new)
        if fault is not None:
            raise fault


def _received_ns(record: StoredRecord, log: LogRecord) -> int:
    """When an outcome was received: as our collector wrote it; of other collectors only the stream's clock counts."""
    if names.HEADER_TENANT in record.headers and log.observed_time_unix_nano:
        return log.observed_time_unix_nano
    return record.timestamp_ms * 1_000_000


def _resource_tenant(record: StoredRecord) -> str | None:
    """The one tenant that all resources of a record name; None when there is no such tenant."""
    if record.topic == names.TOPIC_SPANS:
        resources = [part.resource for part in ExportTraceServiceRequest.FromString(record.value).resource_spans]
    else:
        resources = [part.resource for part in ExportLogsServiceRequest.FromString(record.value).resource_logs]
    tenants = {attributes_of(resource.attributes).get(names.TENANT_ID) for resource in resources}
    owner = tenants.pop() if len(tenants) == 1 else None
    return owner if isinstance(owner, str) else None
