"""What goes over the wire is byte for byte what OpenTelemetry's own SDK and encoder sent for the same requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

import nightschool
from nightschool.sdk.encoding import SpanEncoder, attributes_of
from nightschool.sdk.span import SpanRecord
from nightschool.testing import FixedIds, capture

GOLDEN = Path(__file__).parents[1] / "golden" / "spans.otlp"
"""Recorded with a tracer on `opentelemetry.sdk.trace.TracerProvider`, without the resource, which names its version."""

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Du löst Anfragen. 💳"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
    {"role": "assistant", "tool_calls": [{"id": "c0", "function": {"name": "weather", "arguments": '{"city": "Rīga"}'}}]},
    {"role": "tool", "tool_call_id": "c0", "content": "4 degrees"},
    {"role": "user", "name": "mia", "content": 'a lone surrogate \ud800 and "quotes"\n'},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Now", "parameters": {"type": "object"}}}]
ANSWER = {
    "id": "chatcmpl-1",
    "model": "served",
    "choices": [
        {"message": {"role": "assistant", "content": "Hallo", "reasoning_content": "thinking"}, "finish_reason": "stop"},
        {"message": {"role": "assistant", "content": None, "refusal": "no"}, "finish_reason": "length"},
    ],
    "usage": {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
}
PARAMS = {
    "temperature": 1,
    "top_p": 0.9,
    "top_k": 20,
    "max_completion_tokens": 64,
    "seed": 7,
    "stop": ["\n"],
    "n": 2,
    "stream": True,
}


def scenario() -> None:
    """Everything the tracer can say, once."""
    app = TracerProvider(id_generator=FixedIds(), shutdown_on_exit=False).get_tracer("app")
    with (
        app.start_as_current_span("handler"),
        nightschool.request(task="triage", user="mia", conversation="c1") as outer,
    ):
        with nightschool.model_call("m", MESSAGES, provider="openai", tools=TOOLS, **PARAMS) as call:
            call.first_chunk()
            call.respond(ANSWER)
        with nightschool.request(task="reply") as inner:
            inner.identify(user="tom", conversation=7)
            with nightschool.model_call("m2", [], stop="x", frequency_penalty=0.5, presence_penalty=-1) as call:
                call.answer("plain", response_id="r2", model="served", input_tokens=5, output_tokens=2)
        outer.identify(conversation="c2")
    with nightschool.model_call("alone", [{"role": "user", "content": ""}]):
        pass
    try:
        with nightschool.request(task="broken"), nightschool.model_call("m", []):
            raise KeyError("lost " * 200)
    except KeyError:
        pass


def sent() -> bytes:
    """The spans of the scenario as one OTLP request without its resource."""
    with capture(subject_key="ns-test-key") as collector:
        scenario()
        assert nightschool.flush()
        whole = ExportTraceServiceRequest()
        for request in collector.requests:
            whole.MergeFromString(request.body)
    merged = whole.resource_spans[0]
    for other in whole.resource_spans[1:]:
        merged.scope_spans[0].spans.extend(other.scope_spans[0].spans)
    merged.ClearField("resource")
    del whole.resource_spans[1:]
    return whole.SerializeToString(deterministic=True)


def test_the_spans_are_the_bytes_they_always_were() -> None:
    """Same requests, same ids, same clock: the same bytes as the OpenTelemetry SDK sent."""
    assert sent() == GOLDEN.read_bytes()


# --- beside the official encoder --------------------------------------------------------------------------------------
TEXTS = st.text(max_size=30).filter(lambda text: text.isprintable() or text == "")
VALUES = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.lists(TEXTS, max_size=3),
)
ATTRIBUTES = st.dictionaries(TEXTS.filter(bool), VALUES, max_size=6)
TIMES = st.integers(1, 2**63 - 1)


@st.composite
def records(draw: st.DrawFn) -> SpanRecord:
    """Spans of requests, with and without a parent, a link and an error."""
    trace_id, span_id = draw(st.integers(1, 2**128 - 1)), draw(st.integers(1, 2**64 - 1))
    record = SpanRecord(draw(TEXTS), trace_id, span_id, draw(st.integers(0, 2**64 - 1)), draw(ATTRIBUTES), draw(TIMES))
    record.attributes, record.late, record.ended_ns = draw(ATTRIBUTES), draw(st.none() | ATTRIBUTES), draw(TIMES)
    if draw(st.booleans()):
        record.link = SpanContext(
            draw(st.integers(1, 2**128 - 1)), draw(st.integers(1, 2**64 - 1)), is_remote=draw(st.booleans())
        )
    if draw(st.booleans()):
        record.error = "KeyError", draw(TEXTS)
    return record


def as_sdk_span(record: SpanRecord, resource: Resource) -> ReadableSpan:
    """What OpenTelemetry's SDK would hand to its exporter for the same span."""
    parent = SpanContext(record.trace_id, record.parent_id, is_remote=False) if record.parent_id else None
    return ReadableSpan(
        record.name,
        SpanContext(record.trace_id, record.span_id, is_remote=False),
        parent,
        resource,
        attributes_of(record),
        links=[Link(record.link)] if record.link else [],
        kind=SpanKind.INTERNAL,
        instrumentation_scope=InstrumentationScope("nightschool", "", "", None),
        status=Status(StatusCode.ERROR, record.error[1]) if record.error else Status(),
        start_time=record.started_ns,
        end_time=record.ended_ns,
    )


@given(st.lists(records(), min_size=1, max_size=5), ATTRIBUTES)
@settings(max_examples=200, deadline=None)
def test_a_request_is_what_the_official_encoder_makes(given_records: list[SpanRecord], about: dict[str, Any]) -> None:
    """Whatever is on the spans, our request is, once parsed, the message of the official encoder."""
    resource = Resource(about)
    encoder = SpanEncoder(resource.attributes, scope="nightschool")
    ours = b"".join(encoder.wrap([encoder.encode(record) for record in given_records]))
    official = encode_spans([as_sdk_span(record, resource) for record in given_records])
    assert ExportTraceServiceRequest.FromString(ours) == official
