"""From a request's bytes to durable records: what is the same whichever way the request came.

A request is acknowledged only after the stream has made all of its records durable; until then it can be sent again. What can
never be stored where it belongs goes to the dead-letter topic with its bytes and the reason, and is answered as rejected.
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
from nightschool.keys import KeyRing
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.redaction.otlp import redact_logs
from nightschool.redaction.redactor import Redactor
from nightschool.stream import MAX_RECORD_BYTES, Record, Stream
from nightschool_collector.counters import Counters
from nightschool_collector.request.admission import Hold
from nightschool_collector.request.otlp import Format, decode
from nightschool_collector.request.refusal import UNAUTHORIZED, RefusedError
from nightschool_collector.store.cleaning import Cleaning
from nightschool_collector.store.logs import sort_logs
from nightschool_collector.store.spans import Rejected, Sorted, sort_spans
from nightschool_collector.store.wire import GroupError

Found = TypeVar("Found")
_DEAD_PART_BYTES = MAX_RECORD_BYTES - 65_536  # an item too large for a record is kept in parts of this size


class RecordWriter:
    """Turns checked requests into records. Blocking: call it from a worker thread. Threads share it."""

    def __init__(
        self,
        stream: Stream,
        keys: KeyRing,
        counters: Counters,
        *,
        redactors: Mapping[str, Redactor] = MappingProxyType({}),
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """A tenant without a redactor is stored as it comes."""
        self.stream, self.counters, self.redactors = stream, counters, redactors
        self._keys, self._clock_ns = keys, clock_ns
        for name, redactor in redactors.items():
            redactor.watch(partial(counters.redacted, name))

    def tenant_of(self, authorization: str | None) -> str:
        """Whose key this is; `RefusedError` (401) if nobody's."""
        tenant = self._keys.tenant_of(authorization)
        if tenant is None:
            message = "no tenant has this key; send 'Authorization: Bearer KEY' with a key of [tenants.NAME] key_sha256"
            raise RefusedError(UNAUTHORIZED, message, headers={"www-authenticate": "Bearer"})
        return tenant

    def traces(self, tenant: str, raw: bytes, form: Format, hold: Hold) -> ExportTraceServiceResponse:
        """Store a request of spans (decompressed) and say what of it was rejected; `hold` admits what splitting adds."""
        redactor = self.redactors.get(tenant)
        found = _sorted(
            raw, ExportTraceServiceRequest(), form, lambda request: sort_spans(request, Cleaning(redactor) if redactor else None)
        )
        hold(found.num_bytes)
        self.append(semconv.TOPIC_SPANS, tenant, found.records)
        self._bury(semconv.TOPIC_SPANS, tenant, found.rejected)
        self._count(tenant, "traces", found, len(raw))
        response = ExportTraceServiceResponse()
        if found.rejected:
            response.partial_success.rejected_spans = len(found.rejected)
            response.partial_success.error_message = found.rejected[0].reason
        return response

    def logs(self, tenant: str, raw: bytes, form: Format, hold: Hold) -> ExportLogsServiceResponse:
        """Store a request of log records (decompressed), outcomes among them, and say what of it was rejected."""
        found = _sorted(
            raw, ExportLogsServiceRequest(), form, lambda found: sort_logs(self._redacted(tenant, found, redact_logs))
        )
        hold(found.other.num_bytes)
        self.append_outcomes(tenant, [self.redact_outcome(tenant, outcome) for outcome in found.outcomes])
        self.append(semconv.TOPIC_LOGS, tenant, found.other.records)
        self._bury(semconv.TOPIC_LOGS, tenant, found.other.rejected)
        self._count(tenant, "logs", found.other, len(raw))
        response = ExportLogsServiceResponse()
        if found.other.rejected:
            response.partial_success.rejected_log_records = len(found.other.rejected)
            response.partial_success.error_message = found.other.rejected[0].reason
        return response

    def redact_outcome(self, tenant: str, outcome: Outcome) -> Outcome:
        """The outcome by the tenant's rules."""
        redactor = self.redactors.get(tenant)
        return redactor.outcome(outcome) if redactor else outcome

    def _redacted(self, tenant: str, raw: bytes, redact: Callable[..., bytes]) -> bytes:
        redactor = self.redactors.get(tenant)
        return redact(redactor, raw, subjects=True) if redactor else raw

    def append_outcomes(self, tenant: str, outcomes: Sequence[Outcome]) -> None:
        """Make outcomes durable, in order, and count them."""
        now = self._clock_ns()
        requests = ((outcome.key, to_logs_request(outcome, tenant=tenant, received_ns=now)) for outcome in outcomes)
        records = [(key, request.SerializeToString()) for key, request in requests]
        self.append(semconv.TOPIC_OUTCOMES, tenant, records)
        if records:
            size = sum(len(value) for _, value in records)
            self.counters.accepted(tenant, "outcomes", items=len(records), rejected=0, num_bytes=size)

    def append(self, topic: str, tenant: str, records: Iterable[tuple[bytes, bytes]]) -> None:
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

    def _bury(self, topic: str, tenant: str, rejected: Sequence[Rejected]) -> None:
        """Dead letters: the bytes, the reason and the topic they were meant for; what is too large for a record in parts."""
        letters = []
        for reason, key, value in rejected:
            said = {semconv.HEADER_DLQ_REASON: reason.encode(), semconv.HEADER_DLQ_TOPIC: topic.encode()}
            parts = [value[at : at + _DEAD_PART_BYTES] for at in range(0, len(value), _DEAD_PART_BYTES)]
            for number, part in enumerate(parts, start=1):
                place = {semconv.HEADER_DLQ_PART: f"{number}/{len(parts)}".encode()} if len(parts) > 1 else {}
                letters.append(Record(key, part, {**self._headers(tenant), **said, **place}))
        if letters:
            self.stream.append(semconv.TOPIC_DLQ, letters)

    def _count(self, tenant: str, signal: str, found: Sorted, num_bytes: int) -> None:
        self.counters.accepted(tenant, signal, items=found.num_items, rejected=len(found.rejected), num_bytes=num_bytes)


def _sorted(raw: bytes, message: Message, form: Format, sort: Callable[[bytes], Found]) -> Found:
    """Check the bytes by parsing them as `message`, then sort them as they are."""
    message = decode(raw, message, form)
    if form is Format.JSON:
        raw = message.SerializeToString()
    try:
        return sort(raw)
    except GroupError:
        message.DiscardUnknownFields()
        return sort(message.SerializeToString())
