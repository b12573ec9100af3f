"""Spans to stream records: one trace id a record, keyed by it."""

from __future__ import annotations

from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from nightschool_collector.splitting import MAX_ITEM_BYTES, SPLIT_BYTES, Splitter, shared_by

NO_TRACE, NO_SPAN = bytes(16), bytes(8)


@dataclass(frozen=True, slots=True)
class Sorted:
    """What became of a request: the records (key and value), and what can never be stored."""

    records: list[tuple[bytes, bytes]]
    rejected: int = 0
    reason: str = ""
    """Of the first item that was rejected."""


def sort_spans(request: ExportTraceServiceRequest, raw: bytes | None) -> Sorted:
    """The records of a request. `raw` is its protobuf as received, stored unchanged when all of it is one trace."""
    if raw is not None and len(raw) <= SPLIT_BYTES and (only := _only_trace(request)):
        return Sorted([(only.hex().encode(), raw)])
    splitter, rejected, reason = Splitter(), 0, ""
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            shared = shared_by(resource_spans, scope_spans)
            for span in scope_spans.spans:
                fault = _fault(span)
                if not fault and not splitter.add(span.trace_id.hex().encode(), shared, span):
                    fault = f"span {span.span_id.hex()} has more than {MAX_ITEM_BYTES} bytes: shorten its attributes"
                if fault:
                    rejected += 1
                    reason = reason or fault
    return Sorted(list(splitter.records()), rejected, reason)


def _only_trace(request: ExportTraceServiceRequest) -> bytes | None:
    """The one trace id of a request in which every span is sound; else None."""
    only = None
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if _fault(span) or (only is not None and span.trace_id != only):
                    return None
                only = span.trace_id
    return only


def _fault(span: Span) -> str:
    """Why `span` can never be used; empty if it can."""
    trace_id, span_id = span.trace_id, span.span_id
    if len(trace_id) != len(NO_TRACE) or trace_id == NO_TRACE:
        return f"trace id {trace_id[:32].hex()!r} is not 16 bytes, or all zero"
    if len(span_id) != len(NO_SPAN) or span_id == NO_SPAN:
        return f"span id {span_id[:32].hex()!r} is not 8 bytes, or all zero"
    return ""
