"""Reads stored span records: each OTLP span as one row, whatever dialect it speaks.

Raw bytes are kept in the stream and understood here, on read, so that a better reading repairs history.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from nightschool import semconv as names
from nightschool.errors import RecordError
from nightschool_nightly.dialects.values import attributes_of, text_of

_MODEL_OPERATIONS = {"chat", "text_completion", "generate_content"}


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One span as the episode builder needs it."""

    trace_id: str
    span_id: str
    started_ns: int
    side: str
    """"server" for a span of our server; whatever else says, or does not say, where it stood is the app's."""
    is_model_call: bool
    response_id: str | None
    conversation: str | None
    episode_id: str | None
    task: str | None
    subject: str | None
    attributes: Mapping[str, Any]


def read_spans(value: bytes) -> Iterator[SpanRow]:
    """The spans of one stored record; `RecordError` if it is not an OTLP request."""
    try:
        request = ExportTraceServiceRequest.FromString(value)
    except DecodeError as error:
        raise RecordError(f"a span record of {len(value)} bytes is not an ExportTraceServiceRequest: {error}") from None
    for resource in request.resource_spans:
        shared = attributes_of(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _row(span, shared)


def _row(span: Span, resource: Mapping[str, Any]) -> SpanRow:
    attributes = attributes_of(span.attributes)
    return SpanRow(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        started_ns=span.start_time_unix_nano,
        side="server" if attributes.get(names.SPAN_SIDE) == "server" else "app",
        is_model_call=attributes.get(names.GEN_AI_OPERATION_NAME) in _MODEL_OPERATIONS and names.ERROR_TYPE not in attributes,
        response_id=text_of(attributes.get(names.GEN_AI_RESPONSE_ID)),
        conversation=text_of(attributes.get(names.GEN_AI_CONVERSATION_ID)),
        episode_id=text_of(attributes.get(names.EPISODE_ID)),
        task=text_of(attributes.get(names.TASK, resource.get(names.TASK))),
        subject=text_of(attributes.get(names.SUBJECT)),
        attributes=attributes,
    )
