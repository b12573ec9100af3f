"""From a request's bytes to durable records, the same for HTTP and gRPC.

A request is acknowledged only after the stream has made all of its records durable; until then the client may send it
again. What can never be stored where it belongs goes to the dead-letter topic with its bytes and the reason, and the
answer calls it rejected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from nightschool import semconv
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.redaction.otlp import redact_logs
from nightschool.redaction.redactor import Redactor
from nightschool.stream import MAX_RECORD_BYTES, Record, Stream
from nightschool_collector.counters import Counters
from nightschool_collector.request.admission import Hold
from nightschool_collector.request.otlp import Format, decode
from nightschool_collector.store.cleaning import Cleaning
from nightschool_collector.store.logs import SplitLogs, split_logs
from nightschool_collector.store.spans import split_spans
from nightschool_collector.store.splitting import Rejected, SplitRequest
from nightschool_collector.store.wire import GroupError

S = TypeVar("S")
Write = Callable[[str, bytes, Format, Hold], Message]
"""What stores a tenant's OTLP request and returns the answer: `RecordWriter.traces` or `.logs`."""

_DEAD_PART_BYTES = MAX_RECORD_BYTES - 65_536  # of one part of an item too large for a record; the rest is for headers


class RecordWriter:
    """Turns requests into records. Blocking: call it from a worker thread. Safe to use from several threads."""

    def __init__(
        self,
        stream: Stream,
        counters: Counters,
        *,
        redactors: Mapping[str, Redactor] = MappingProxyType({}),
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """What comes from a tenant without a redactor is stored as it comes."""
        self.stream = stream
        self._counters, self._redactors, self._clock_ns = counters, redactors, clock_ns
        for name, redactor in redactors.items():
            redactor.watch(partial(counters.redacted, name))

    def traces(self, tenant: str, raw: bytes, form: Format, hold: Hold) -> ExportTraceServiceResponse:
        """Store a request of spans (decompressed) and say which were rejected; `hold` reserves what splitting adds."""
        redactor = self._redactors.get(tenant)

        def split(request: bytes) -> SplitRequest:
            return split_spans(request, Cleaning(redactor) if redactor else None)

        found = _split(raw, ExportTraceServiceRequest(), form, split)
        hold(found.num_bytes)
        self._store(semconv.TOPIC_SPANS, tenant, "traces", found, len(raw))
        response = ExportTraceServiceResponse()
        if found.rejected:
            response.partial_success.rejected_spans = len(found.rejected)
            response.partial_success.error_message = found.rejected[0].reason
        return response

    def logs(self, tenant: str, raw: bytes, form: Format, hold: Hold) -> ExportLogsServiceResponse:
        """Store a request of log records (decompressed), outcomes among them, and say which were rejected."""
        redactor = self._redactors.get(tenant)

        def split(request: bytes) -> SplitLogs:
            return split_logs(redact_logs(redactor, request, subjects=True) if redactor else request)

        found = _split(raw, ExportLogsServiceRequest(), form, split)
        hold(found.other.num_bytes)
        self.append_outcomes(tenant, [self.redact_outcome(tenant, outcome) for outcome in found.outcomes])
        self._store(semconv.TOPIC_LOGS, tenant, "logs", found.other, len(raw))
        response = ExportLogsServiceResponse()
        if rejected := found.other.rejected:
            response.partial_success.rejected_log_records = len(rejected)
            response.partial_success.error_message = rejected[0].reason
        return response

    def redact_outcome(self, tenant: str, outcome: Outcome) -> Outcome:
        """The outcome, redacted by the tenant's rules."""
        redactor = self._redactors.get(tenant)
        return redactor.outcome(outcome) if redactor else outcome

    def append_outcomes(self, tenant: str, outcomes: Sequence[Outcome]) -> None:
        """Make outcomes durable, in order, and count them."""
        now = self._clock_ns()
        requests = ((outcome.key, to_logs_request(outcome, tenant=tenant, received_ns=now)) for outcome in outcomes)
        records = [(key, request.SerializeToString()) for key, request in requests]
        self._append(semconv.TOPIC_OUTCOMES, tenant, records)
        if records:
            size = sum(len(value) for _, value in records)
            self._counters.accepted(tenant, "outcomes", items=len(records), rejected=0, num_bytes=size)

    def _store(self, topic: str, tenant: str, signal: str, found: SplitRequest, num_bytes: int) -> None:
        """Make records durable, write what was rejected to the dead letters, and count both."""
        self._append(topic, tenant, found.records)
        self._write_dead_letters(topic, tenant, found.rejected)
        self._counters.accepted(tenant, signal, items=found.num_items, rejected=len(found.rejected), num_bytes=num_bytes)

    def _append(self, topic: str, tenant: str, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Make records (key and value) durable with the headers that every record carries."""
        headers = self._headers(tenant)
        if batch := [Record(key, value, headers) for key, value in records]:
            self.stream.append(topic, batch)

    def _headers(self, tenant: str) -> dict[str, bytes]:
        return {
            semconv.HEADER_TENANT: tenant.encode(),
            semconv.HEADER_SCHEMA: semconv.SCHEMA.encode(),
            semconv.HEADER_RECEIVED_MS: str(self._clock_ns() // 1_000_000).encode(),
            semconv.HEADER_CONTENT_TYPE: Format.PROTOBUF.encode(),
        }

    def _write_dead_letters(self, topic: str, tenant: str, rejected: Sequence[Rejected]) -> None:
        """Store the bytes (in parts if one record cannot hold them), the reason and the intended topic."""
        letters = []
        for reason, key, value in rejected:
            about = {semconv.HEADER_DLQ_REASON: reason.encode(), semconv.HEADER_DLQ_TOPIC: topic.encode()}
            parts = [value[at : at + _DEAD_PART_BYTES] for at in range(0, len(value), _DEAD_PART_BYTES)]
            for number, part in enumerate(parts, start=1):
                place = {semconv.HEADER_DLQ_PART: f"{number}/{len(parts)}".encode()} if len(parts) > 1 else {}
                letters.append(Record(key, part, {**self._headers(tenant), **about, **place}))
        if letters:
            self.stream.append(semconv.TOPIC_DLQ, letters)


def _split(raw: bytes, message: Message, form: Format, split: Callable[[bytes], S]) -> S:
    """Check the bytes by parsing them as `message`, then split the bytes themselves."""
    message = decode(raw, message, form)
    if form is Format.JSON:
        raw = message.SerializeToString()
    try:
        return split(raw)
    except GroupError:
        # Groups are unknown fields in every OTLP message, so the request is stored without its unknown fields.
        message.DiscardUnknownFields()
        return split(message.SerializeToString())
