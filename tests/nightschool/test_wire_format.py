"""What goes over the wire is byte for byte what OpenTelemetry's own SDK and encoder sent for the same requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

import nightschool
from nightschool.testing import FixedIds, capture

GOLDEN = Path(__file__).parent / "golden" / "spans.otlp"
"""Recorded with the tracer built on `opentelemetry.sdk.trace.TracerProvider`; resource left out, it names the SDK's version."""

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
