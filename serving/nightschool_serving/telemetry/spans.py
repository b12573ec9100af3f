"""One OTLP span per inference request: what the server knows and the app cannot.

The answer's token ids, the log-probabilities it was sampled with and the release that answered. It has no texts: the
app's own span has them, and both spans have the response id.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from nightschool import semconv
from nightschool.otlp.attributes import key_values
from nightschool_serving.telemetry.recorder import Recording

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_SENT_ATTRIBUTES = {
    "temperature": semconv.GEN_AI_REQUEST_TEMPERATURE,
    "top_p": semconv.GEN_AI_REQUEST_TOP_P,
    "top_k": semconv.GEN_AI_REQUEST_TOP_K,
    "frequency_penalty": semconv.GEN_AI_REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": semconv.GEN_AI_REQUEST_PRESENCE_PENALTY,
    "max_tokens": semconv.GEN_AI_REQUEST_MAX_TOKENS,
    "max_completion_tokens": semconv.GEN_AI_REQUEST_MAX_TOKENS,
    "seed": semconv.GEN_AI_REQUEST_SEED,
    "stop": semconv.GEN_AI_REQUEST_STOP_SEQUENCES,
    "stream": semconv.GEN_AI_REQUEST_STREAM,
}
WITH_VALUE = _SENT_ATTRIBUTES.keys() | semconv.SAMPLING_PARAMETERS
"""The fields of a request body that a span reports with their values, when the client set them."""
NOT_REPORTED = {"model", "messages", "prompt", "tools", "n"} | semconv.NEUTRAL_PARAMETERS
"""What is asked, which the app's own span has, and what changes no answer."""


def sent_fields(request: Any) -> dict[str, Any]:
    """What the client set in a request body of vLLM's: parameters with their values, those not known here with None.

    Names that vLLM does not know are no parameters: it ignores them.
    """
    found = request.model_fields_set & type(request).model_fields.keys()
    unknown = {name for name in found - WITH_VALUE - NOT_REPORTED if getattr(request, name) is not None}
    values = request.model_dump(include=found & WITH_VALUE, by_alias=True)
    return {name: value for name, value in values.items() if value is not None} | dict.fromkeys(sorted(unknown))


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The W3C trace context a client sent."""

    trace_id: bytes
    span_id: bytes

    @classmethod
    def parse(cls, header: str | None) -> TraceParent | None:
        """None for no header or one that is not a traceparent; the span then starts a trace of its own."""
        match = _TRACEPARENT.fullmatch((header or "").strip())
        return cls(bytes.fromhex(match[1]), bytes.fromhex(match[2])) if match else None


@dataclass(slots=True)
class ServedRequest:
    """One inference request, as its span describes it."""

    tenant: str
    authorization: str
    operation: str
    """chat or text_completion."""
    alias: str
    model: str
    release: str
    response_id: str
    started_ns: int
    parent: TraceParent | None
    tokenizer: str
    """SHA-256 of the tokenizer.json that made the token ids."""
    captures_content: bool
    """False when the client asked not to record token ids."""
    sent: Mapping[str, Any]
    """What the client set (`sent_fields`)."""
    recording: Recording = field(default_factory=Recording)
    ended_ns: int = 0
    status: int | None = None
    """HTTP status; None when the client went away before there was one."""
    is_complete: bool = False
    """Whether the whole answer went out."""
    is_beam_search: bool = False
    """Beam search asks the engine many times for one answer, so its tokens are not recorded."""


def to_export_request(tenant: str, requests: Iterable[ServedRequest]) -> ExportTraceServiceRequest:
    """The spans of one tenant as the body of `POST /v1/traces`."""
    export = ExportTraceServiceRequest()
    resource = export.resource_spans.add()
    resource.resource.attributes.extend(key_values({"service.name": "nightschool-serving", semconv.TENANT_ID: tenant}))
    scope = resource.scope_spans.add()
    scope.scope.name = "nightschool_serving"
    scope.spans.extend(to_span(request) for request in requests)
    return export


def to_span(request: ServedRequest) -> Span:
    """The span of `request`, a child of the client's span when it sent one."""
    parent = request.parent
    span = Span(
        trace_id=parent.trace_id if parent else secrets.token_bytes(16),
        span_id=secrets.token_bytes(8),
        parent_span_id=parent.span_id if parent else b"",
        name=f"{request.operation} {request.alias}",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=request.started_ns,
        end_time_unix_nano=request.ended_ns,
    )
    attributes = {**_about_request(request), **_about_answer(request)}
    if error := error_of(request):
        attributes[semconv.ERROR_TYPE] = error
        span.status.code = Status.STATUS_CODE_ERROR
    known = {name: value for name, value in attributes.items() if value is not None}
    # A client may send anything under the name of a parameter; it is recorded as a text.
    span.attributes.extend(key_values(known, unknown=str))
    return span


def error_of(request: ServedRequest) -> str | None:
    """Why the request has no complete answer; None when it has one."""
    if request.status is not None and request.status >= 400:
        return str(request.status)
    if request.is_beam_search:
        return None if request.is_complete else "cancelled"
    finished = [choice.finish_reason for choice in request.recording.choices.values()]
    if "abort" in finished:  # the engine stopped the request, as when the server ends
        return "abort"
    if not finished or None in finished:
        return "cancelled"
    return "generation_error" if "error" in finished else None


def _about_request(request: ServedRequest) -> dict[str, Any]:
    sent = {name: request.sent[field] for field, name in _SENT_ATTRIBUTES.items() if request.sent.get(field) not in (None, [])}
    stop = sent.get(semconv.GEN_AI_REQUEST_STOP_SEQUENCES)
    if isinstance(stop, str):
        sent[semconv.GEN_AI_REQUEST_STOP_SEQUENCES] = [stop]
    others = {name: value for name, value in request.sent.items() if name not in _SENT_ATTRIBUTES}
    if others and request.captures_content:  # a schema or a word that must not be said is content
        sent[semconv.REQUEST_PARAMETERS] = json.dumps(others, default=str)
    return {
        semconv.SPAN_SIDE: "server",
        semconv.GEN_AI_OPERATION_NAME: request.operation,
        semconv.GEN_AI_PROVIDER_NAME: "vllm",
        semconv.GEN_AI_REQUEST_MODEL: request.alias,
        semconv.GEN_AI_RESPONSE_MODEL: request.model,
        semconv.GEN_AI_RESPONSE_ID: request.response_id,
        semconv.RELEASE: request.release,
        semconv.CONTENT_CAPTURE: None if request.captures_content else False,
        **sent,
    }


def _about_answer(request: ServedRequest) -> dict[str, Any]:
    recording = request.recording
    choices = list(recording.choices.values())
    if not choices:
        return {}
    about: dict[str, Any] = {
        semconv.GEN_AI_USAGE_INPUT_TOKENS: sum(map(len, recording.prompts)),
        semconv.GEN_AI_USAGE_OUTPUT_TOKENS: sum(len(choice.token_ids) for choice in choices),
        semconv.GEN_AI_RESPONSE_FINISH_REASONS: [choice.finish_reason for choice in choices if choice.finish_reason],
    }
    if request.sent.get("stream") and recording.first_token_ns:
        about[semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] = (recording.first_token_ns - request.started_ns) / 1e9
    # These attributes hold one whole answer: the tokens of several would be mixed up, and those of one that was cut off
    # are not what the policy would have said. So they are left out.
    if (
        error_of(request) is None
        and request.captures_content
        and len(choices) == 1
        and len(choices[0].logprobs) == len(choices[0].token_ids)
    ):
        about[semconv.PROMPT_TOKEN_IDS] = recording.prompts[0]
        about[semconv.COMPLETION_TOKEN_IDS] = choices[0].token_ids
        about[semconv.COMPLETION_LOGPROBS] = choices[0].logprobs
        about[semconv.TOKENIZER] = request.tokenizer
    return about
