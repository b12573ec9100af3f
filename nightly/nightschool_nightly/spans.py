"""Reads stored OTLP spans: what a span says about a model call, in the OpenTelemetry GenAI dialect.

Raw bytes are kept in the stream and understood here, on read, so that a better reading repairs history.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from nightschool import semconv as names
from nightschool.episode import Message, OtherPart, Part, TextPart, ToolCallPart, ToolResponsePart
from nightschool.errors import RecordError

_MODEL_OPERATIONS = {"chat", "text_completion", "generate_content"}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# Attribute -> our name, and whether a value is one that a sampler takes.
_REQUEST: dict[str, tuple[str, Callable[[Any], bool]]] = {
    names.GEN_AI_REQUEST_TEMPERATURE: ("temperature", lambda value: _is_number(value) and value >= 0),
    names.GEN_AI_REQUEST_TOP_P: ("top_p", lambda value: _is_number(value) and 0 < value <= 1),
    names.GEN_AI_REQUEST_MAX_TOKENS: ("max_tokens", lambda value: _is_whole(value) and value > 0),
    names.GEN_AI_REQUEST_SEED: ("seed", _is_whole),
    names.GEN_AI_REQUEST_STOP_SEQUENCES: (
        "stop_sequences",
        lambda value: isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)),
    ),
}


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
        response_id=_text(attributes.get(names.GEN_AI_RESPONSE_ID)),
        conversation=_text(attributes.get(names.GEN_AI_CONVERSATION_ID)),
        episode_id=_text(attributes.get(names.EPISODE_ID)),
        task=_text(attributes.get(names.TASK, resource.get(names.TASK))),
        subject=_text(attributes.get(names.SUBJECT)),
        attributes=attributes,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def attributes_of(attributes: Any) -> dict[str, Any]:
    """OTLP attributes as plain Python."""
    return {item.key: _plain(item.value) for item in attributes}


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_plain(item) for item in value.array_value.values]
        case "kvlist_value":
            pairs: Any = value.kvlist_value.values
            return {item.key: _plain(item.value) for item in pairs if isinstance(item, KeyValue)}
        case "bytes_value":
            return value.bytes_value.hex()
        case None:
            return None
        case kind:
            return getattr(value, kind)


def _structured(value: Any) -> Any:
    """The value that JSON text means, None when it means none; what is structured already as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


# --- messages -----------------------------------------------------------------------------------------------------------
def read_messages(value: Any) -> tuple[Message, ...] | None:
    """Messages of `gen_ai.input.messages` or `gen_ai.output.messages`, as JSON text or structured; None when not captured."""
    value = _structured(value)
    if not isinstance(value, list):
        return None
    messages = [read_message(item) for item in value]
    return None if None in messages else tuple(message for message in messages if message is not None)


def read_message(value: Any) -> Message | None:
    """One message with its parts; None when it is not one."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str) or not isinstance(value.get("parts"), list):
        return None
    parts = tuple(read_part(part) for part in value["parts"] if isinstance(part, dict))
    return Message(value["role"], parts, _text(value.get("name")))


def read_part(part: Mapping[str, Any]) -> Part:
    """One typed part; kinds we do not know pass through whole."""
    match part.get("type"):
        case "text" if isinstance(part.get("content"), str):
            return TextPart(part["content"])
        case "tool_call" if isinstance(part.get("name"), str):
            return ToolCallPart(part["name"], _text(part.get("id")), part.get("arguments"))
        case "tool_call_response":
            return ToolResponsePart(part.get("response", part.get("result")), _text(part.get("id")))
        case _:
            return OtherPart(part)


def context_of(attributes: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """What the model was given, system instructions first; None when content was not captured, or not all of it is understood."""
    messages = read_messages(attributes.get(names.GEN_AI_INPUT_MESSAGES))
    if not messages:
        return None
    if (system := attributes.get(names.GEN_AI_SYSTEM_INSTRUCTIONS)) is None:
        return messages
    parts = _structured(system)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return None
    return (Message("system", tuple(read_part(part) for part in parts)), *messages) if parts else messages


def request_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters as sent; what was not sent, or no sampler takes, is absent."""
    return {short: attributes[name] for name, (short, fits) in _REQUEST.items() if name in attributes and fits(attributes[name])}


def tools_of(attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Tool definitions; empty when there are none or they were not captured."""
    value = _structured(attributes.get(names.GEN_AI_TOOL_DEFINITIONS))
    return tuple(_chat_tool(item) for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _chat_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool as chat templates expect it, under "function"; the GenAI conventions define it flat."""
    if tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
