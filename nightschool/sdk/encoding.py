"""Spans as the bytes of an OTLP request. Runs in the exporter's thread; the app does not wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status

from nightschool import semconv
from nightschool.otlp.attributes import key_values
from nightschool.otlp.varint import encode_varint
from nightschool.sdk.snapshot import read_snapshot
from nightschool.sdk.span import SpanRecord

Scrub = Callable[[bytes], bytes]
"""Takes secrets out of a serialized span; what it returns is what leaves the process."""

_LOCAL = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
# Tags (field number and wire type) in the messages around the spans.
_RESOURCE_SPANS = b"\x0a"
_RESOURCE = b"\x0a"
_SCOPE_SPANS = b"\x12"
_SCOPE = b"\x0a"
_SPANS = b"\x12"


class SpanEncoder:
    """Encodes the spans of one client."""

    def __init__(self, resource: Mapping[str, Any], *, scope: str, scrub: Scrub | None = None) -> None:
        """`resource` describes the process; `scope` names the instrumentation."""
        self._resource = _field(_RESOURCE, Resource(attributes=key_values(resource)).SerializeToString())
        self._scope = _field(_SCOPE, InstrumentationScope(name=scope).SerializeToString())
        self._scrub = scrub

    def encode(self, record: SpanRecord) -> bytes:
        """One span as an element of a request."""
        span = _to_span(record, attributes_of(record)).SerializeToString()
        return _field(_SPANS, self._scrub(span) if self._scrub else span)

    def wrap(self, spans: Sequence[bytes]) -> Iterator[bytes]:
        """Encoded spans as the pieces of one `ExportTraceServiceRequest`."""
        num_bytes = len(self._scope) + sum(map(len, spans))
        scope_spans = _SCOPE_SPANS + encode_varint(num_bytes)
        yield _RESOURCE_SPANS + encode_varint(len(self._resource) + len(scope_spans) + num_bytes)
        yield self._resource
        yield scope_spans
        yield self._scope
        yield from spans


def attributes_of(record: SpanRecord) -> dict[str, Any]:
    """Everything in `record`, as attributes."""
    attributes = {**record.stamps, **record.attributes}
    if endpoint := record.endpoint:
        request, answer = record.request, record.answer
        attributes.update(endpoint.request_attributes(read_snapshot(request)) if isinstance(request, bytes) else request or {})
        if record.server:
            attributes[semconv.SERVER_ADDRESS] = record.server[0]
            if record.server[1]:
                attributes[semconv.SERVER_PORT] = record.server[1]
        if record.num_resends:
            attributes[semconv.HTTP_REQUEST_RESEND_COUNT] = record.num_resends
        if record.first_chunk_s is not None:
            attributes[semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] = record.first_chunk_s
        if answer is not None:
            attributes.update(endpoint.response_attributes(read_snapshot(answer)) if isinstance(answer, bytes) else answer)
    for name, value in (record.late or {}).items():
        attributes.pop(name, None)  # so that the newest attribute comes last
        attributes[name] = value
    if record.error:
        attributes[semconv.ERROR_TYPE] = record.error[0]
    return attributes


def _to_span(record: SpanRecord, attributes: Mapping[str, Any]) -> Span:
    span = Span(
        trace_id=record.trace_id.to_bytes(16, "big"),
        span_id=record.span_id.to_bytes(8, "big"),
        parent_span_id=record.parent_id.to_bytes(8, "big") if record.parent_id else b"",
        name=record.name,
        kind=Span.SPAN_KIND_CLIENT if record.endpoint else Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=record.started_ns,
        end_time_unix_nano=record.ended_ns,
        attributes=key_values(attributes),
        status=Status(code=Status.STATUS_CODE_ERROR, message=record.error[1]) if record.error else Status(),
        flags=_LOCAL,
    )
    if link := record.link:
        flags = _REMOTE if link.is_remote else _LOCAL
        span.links.add(trace_id=link.trace_id.to_bytes(16, "big"), span_id=link.span_id.to_bytes(8, "big"), flags=flags)
    return span


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + encode_varint(len(content)) + content
