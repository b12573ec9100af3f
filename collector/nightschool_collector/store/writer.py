"""From a request's bytes to durable records, the same for HTTP and gRPC.

A request is acknowledged only after the stream has made all of its records durable; until then the client may send it
again. What can never be stored where it belongs goes to the dead-letter topic with its bytes and the reason, and the
answer calls it rejected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from nightschool import semconv
from nightschool.errors import RecordError
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.redaction.redactor import Redactor
from nightschool.stream import MAX_RECORD_BYTES, Record, Stream
from nightschool_collector.counters import Counters
from nightschool_collector.request.admission import Hold
from nightschool_collector.request.body_count import ITEM_BYTES
from nightschool_collector.request.otlp import Format
from nightschool_collector.request.otlp_json import parse_json
from nightschool_collector.request.protobuf_count import ProtobufCount
from nightschool_collector.request.refusal import TOO_LARGE, RefusedError
from nightschool_collector.request.turns import in_steps, in_turn
from nightschool_collector.store.checking import check
from nightschool_collector.store.claimed_tenant import other_tenant
from nightschool_collector.store.cleaning import CleanFrames, Cleaning
from nightschool_collector.store.logs import split_logs
from nightschool_collector.store.signals import LOGS, TRACES, Signal
from nightschool_collector.store.spans import split_spans
from nightschool_collector.store.splitting import Rejected, Splitter
from nightschool_collector.store.wire import GroupError

S = TypeVar("S")
Write = Callable[[str, bytes, Format, Hold], Message]
"""What stores a tenant's OTLP request and returns the answer: `RecordWriter.traces` or `.logs`."""

_DEAD_PART_BYTES = MAX_RECORD_BYTES - 65_536  # of one part of an item too large for a record; the rest is for headers
# A resource stands beside every trace of its spans, so a request grows when it is split: the smaller its spans, the
# more. So large it may become at least, or so many times its own size, which no request of real spans comes near.
_STORED_BYTES, _MAX_GROWTH = 256 << 20, 4
_GROUP_REQUEST_BYTES = 256 << 10  # a larger request with groups where they matter is refused: it would be parsed whole


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
        self._clean_frames = {name: CleanFrames() for name in redactors}
        for name, redactor in redactors.items():
            redactor.watch(partial(counters.redacted, name))

    def traces(self, tenant: str, raw: bytes, form: Format, hold: Hold) -> ExportTraceServiceResponse:
        """Store a request of spans (decompressed and counted) and say which were rejected."""
        room = _Room(hold, len(raw))
        with in_turn(len(raw)):
            found, raw = self._split(tenant, raw, form, TRACES, room, split_spans)
        self._store(TRACES, tenant, found, len(raw), room)
        response = ExportTraceServiceResponse()
        if found.num_rejected:
            response.partial_success.rejected_spans = found.num_rejected
        if warning := self._warning(TRACES, tenant, raw, found):
            response.partial_success.error_message = warning
        return response

    def logs(self, tenant: str, raw: bytes, form: Format, hold: Hold) -> ExportLogsServiceResponse:
        """Store a request of log records (decompressed and counted), outcomes among them; say which were rejected."""
        room = _Room(hold, len(raw))
        with in_turn(len(raw)):
            found, raw = self._split(tenant, raw, form, LOGS, room, split_logs)
        self.append_outcomes(tenant, [self.redact_outcome(tenant, outcome) for outcome in found.outcomes])
        self._store(LOGS, tenant, found.other, len(raw), room)
        response = ExportLogsServiceResponse()
        if found.other.num_rejected:
            response.partial_success.rejected_log_records = found.other.num_rejected
        if warning := self._warning(LOGS, tenant, raw, found.other):
            response.partial_success.error_message = warning
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

    def _split(
        self, tenant: str, raw: bytes, form: Format, signal: Signal, room: _Room, split: Callable[[bytes, Cleaning | None], S]
    ) -> tuple[S, bytes]:
        """What `split` makes of a request, and the request as protobuf."""
        if form is Format.JSON:
            raw = parse_json(raw, signal.request()).SerializeToString()
            count = ProtobufCount()  # in its text only names and values were counted, not items
            count.add(raw)
            count.finish()
        else:
            check(raw, signal.request)
        try:
            return split(raw, self._cleaning(tenant, signal, raw, room)), raw
        except GroupError:
            # Groups are unknown fields in every OTLP message, so the request is stored without its unknown fields.
            if len(raw) > _GROUP_REQUEST_BYTES:
                raise RecordError("the body holds a group, which OTLP never has: leave it out") from None
            message = signal.request.FromString(raw)
            message.DiscardUnknownFields()
            raw = message.SerializeToString()
            return split(raw, self._cleaning(tenant, signal, raw, room)), raw

    def _cleaning(self, tenant: str, signal: Signal, raw: bytes, room: _Room) -> Cleaning | None:
        if tenant not in self._redactors:
            return None
        return Cleaning(self._redactors[tenant], signal, raw, known=self._clean_frames[tenant], room=room.hold_beside)

    def _store(self, signal: Signal, tenant: str, found: Splitter, num_bytes: int, room: _Room) -> None:
        """Make records durable, write what was rejected to the dead letters, and count both."""
        enough = max(_STORED_BYTES, _MAX_GROWTH * num_bytes)
        if (stored := found.num_bytes(enough)) > enough:
            message = f"with its resource beside every trace the request has {stored} bytes; at most {enough} are allowed"
            raise RefusedError(TOO_LARGE, f"{message}: send smaller resources, or smaller batches", reason="too_many")
        room.hold_beside(min(stored, self.stream.append_bytes) + found.num_items * ITEM_BYTES)
        for records in in_steps(_in_goes(found.records(), self.stream.append_bytes)):
            self._append(signal.topic, tenant, records)
        self._write_dead_letters(signal.topic, tenant, found.rejected.values())
        self._counters.accepted(tenant, signal.name, items=found.num_items, rejected=found.num_rejected, num_bytes=num_bytes)

    def _warning(self, signal: Signal, tenant: str, raw: bytes, found: Splitter) -> str:
        """What the client should know of a request that was stored: why items were rejected, or that it names another tenant.

        OTLP allows a message in `partial_success` where nothing was rejected; official exporters log it.
        """
        named = other_tenant(raw, tenant)
        if named:
            self._counters.named_another(tenant, signal.name)
        return next(iter(found.rejected.values())).reason if found.rejected else named

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

    def _write_dead_letters(self, topic: str, tenant: str, rejected: Iterable[Rejected]) -> None:
        """Store for each reason one item's bytes (in parts if one record cannot hold them) and how many there were."""
        letters = []
        for sample in rejected:
            about = {
                semconv.HEADER_DLQ_REASON: sample.reason.encode(),
                semconv.HEADER_DLQ_TOPIC: topic.encode(),
                semconv.HEADER_DLQ_COUNT: str(sample.count).encode(),
            }
            value = sample.value
            parts = [value[at : at + _DEAD_PART_BYTES] for at in range(0, len(value), _DEAD_PART_BYTES)]
            for number, part in enumerate(parts, start=1):
                place = {semconv.HEADER_DLQ_PART: f"{number}/{len(parts)}".encode()} if len(parts) > 1 else {}
                letters.append(Record(sample.key, part, {**self._headers(tenant), **about, **place}))
        if letters:
            self.stream.append(semconv.TOPIC_DLQ, letters)


class _Room:
    """The memory that one request has reserved."""

    def __init__(self, hold: Hold, num_bytes: int) -> None:
        self._hold, self._num_bytes = hold, num_bytes

    def hold_beside(self, num_bytes: int) -> None:
        """Reserve so many bytes in all beside those of the request itself."""
        self._hold(self._num_bytes + num_bytes)


def _in_goes(records: Iterator[tuple[bytes, bytes]], num_bytes: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """The records, as many at a time as have so many bytes, and one at least."""
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for record in records:
        if batch and size + len(record[1]) > num_bytes:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record[1])
    if batch:
        yield batch
