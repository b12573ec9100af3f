"""Reads stored records: each OTLP span as one row, whatever dialect it speaks, and each message event of a log record.

Raw bytes are kept in the stream and understood here, on read, so that a better reading also repairs the past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from nightschool import semconv as names
from nightschool.errors import RecordError
from nightschool.otlp.attributes import attributes_of, value_of
from nightschool.outcomes.record import Outcome, from_log_record
from nightschool_nightly.dialects.feedback import outcome_of
from nightschool_nightly.dialects.otel_1_36 import EVENT_NAMES, read_message_events
from nightschool_nightly.dialects.precedence import fill_in, keep, normalize
from nightschool_nightly.dialects.span import Event, RawSpan
from nightschool_nightly.dialects.table import DIALECTS
from nightschool_nightly.dialects.unknown import unknown_dialect
from nightschool_nightly.dialects.values import text_of

Request = TypeVar("Request", ExportTraceServiceRequest, ExportLogsServiceRequest)
_MODEL_OPERATIONS = {"chat", "text_completion", "generate_content"}
_TOOL_OPERATION = "execute_tool"
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One span as the episode builder needs it."""

    trace_id: str
    span_id: str
    started_ns: int
    side: str
    """"server" for a span of our server; every other span is one of the app."""
    is_model_call: bool
    response_id: str | None
    conversation: str | None
    episode_id: str | None
    task: str | None
    subject: str | None
    attributes: Mapping[str, Any]
    """The attributes that episodes are made of, under the names of the GenAI conventions."""
    parent_id: str | None = None
    is_tool_run: bool = False
    has_content: bool = False
    """Whether the span itself, without log records, has messages and answer."""
    outcomes: tuple[Outcome, ...] = ()
    """What the span says about how something turned out: annotations, rewards, evaluation events."""
    unknown_dialect: str | None = None
    """The instrumentation scope of a span that looks like a model call and that no dialect reads; else None."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """A log record that holds a part of a model call."""

    trace_id: str
    span_id: str
    at_ns: int
    content: tuple[str, dict[str, Any], Any]
    """Name, attributes and body of the `Event`, as plain values that the spool can keep."""


# --- spans --------------------------------------------------------------------------------------------------------------
def read_spans(value: bytes) -> Iterator[SpanRow]:
    """The spans of one stored record; `RecordError` if it is not an OTLP request."""
    request = _decoded(ExportTraceServiceRequest, value, "span")
    for resource in request.resource_spans:
        shared = attributes_of(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _row(span, scope.scope.name, shared)


def _row(span: Span, scope: str, resource: Mapping[str, Any]) -> SpanRow:
    events = tuple(Event(event.name, attributes_of(event.attributes)) for event in span.events)
    raw = RawSpan(span.name, scope, attributes_of(span.attributes), events)
    attributes = normalize(raw)
    operation = text_of(attributes.get(names.GEN_AI_OPERATION_NAME))
    failed = names.ERROR_TYPE in attributes or span.status.code == Status.STATUS_CODE_ERROR
    is_call = operation in _MODEL_OPERATIONS
    return SpanRow(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        started_ns=span.start_time_unix_nano,
        side="server" if attributes.get(names.SPAN_SIDE) == "server" else "app",
        is_model_call=is_call and not failed,
        response_id=text_of(attributes.get(names.GEN_AI_RESPONSE_ID)),
        conversation=text_of(attributes.get(names.GEN_AI_CONVERSATION_ID)),
        episode_id=text_of(attributes.get(names.EPISODE_ID)),
        task=text_of(attributes.get(names.TASK, resource.get(names.TASK))),
        subject=text_of(attributes.get(names.SUBJECT)),
        attributes=attributes,
        parent_id=span.parent_span_id.hex() or None,
        is_tool_run=operation == _TOOL_OPERATION,
        has_content=names.GEN_AI_INPUT_MESSAGES in attributes and names.GEN_AI_OUTPUT_MESSAGES in attributes,
        outcomes=_outcomes(span, raw, attributes),
        unknown_dialect=None if operation else unknown_dialect(raw),
    )


def _outcomes(span: Span, raw: RawSpan, attributes: Mapping[str, Any]) -> tuple[Outcome, ...]:
    found = [
        outcome_of(
            given,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            conversation=text_of(attributes.get(names.GEN_AI_CONVERSATION_ID)),
            at_ns=span.end_time_unix_nano,
        )
        for dialect in DIALECTS
        if dialect.feedback is not None
        for given in dialect.feedback(raw)
    ]
    found += [_evaluation(span, event) for event in span.events if event.name == names.GEN_AI_EVALUATION_RESULT]
    return tuple(outcome for outcome in found if outcome is not None)


def _evaluation(span: Span, event: Span.Event) -> Outcome | None:
    """An evaluation that came as an event of the evaluated span, read like the log record it should have been."""
    log = LogRecord(event_name=event.name, time_unix_nano=event.time_unix_nano, trace_id=span.trace_id, span_id=span.span_id)
    log.attributes.extend(event.attributes)
    try:
        return from_log_record(log)
    except RecordError:
        return None


# --- log records --------------------------------------------------------------------------------------------------------
def read_events(value: bytes) -> Iterator[EventRow]:
    """The log records of one stored record that belong to a model call; `RecordError` if it is not an OTLP request."""
    for log in read_logs(value):
        attributes = attributes_of(log.attributes)
        name = log.event_name or text_of(attributes.pop("event.name", None)) or ""
        if name not in EVENT_NAMES or log.trace_id in (b"", _NO_TRACE) or log.span_id in (b"", _NO_SPAN):
            continue
        content = (name, attributes, value_of(log.body))
        yield EventRow(log.trace_id.hex(), log.span_id.hex(), log.time_unix_nano or log.observed_time_unix_nano, content)


def read_logs(value: bytes) -> Iterator[LogRecord]:
    """Every log record of one stored record; `RecordError` if it is not an OTLP request."""
    request = _decoded(ExportLogsServiceRequest, value, "log")
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            yield from scope.log_records


def with_events(attributes: Mapping[str, Any], contents: list[Any]) -> dict[str, Any]:
    """The attributes of a call, filled in from the contents of its log records, which are in order of time."""
    found = dict(attributes)
    fill_in(found, keep(read_message_events([Event(*content) for content in contents])))
    return found


def _decoded(kind: type[Request], value: bytes, what: str) -> Request:
    try:
        return kind.FromString(value)
    except DecodeError as error:
        raise RecordError(f"a {what} record of {len(value)} bytes is not an {kind.__name__}: {error}") from None
