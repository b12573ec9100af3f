"""The traffic that every dialect records: a question with a tool call, and a plain answer, streamed. Python 3.11, `openai` client.

Runs in the throw-away environments, so it imports nothing of the project.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

MODEL = "help-desk-1"
USER, SESSION = "user-7", "thread-42"
SYSTEM = {"role": "system", "content": "You are the help desk of a bank."}
QUESTION = {"role": "user", "content": "My card ending 4242 is blocked. What now?"}
TOOL_RESULT = '{"status": "blocked", "reason": "three wrong PINs"}'
PLAIN_QUESTION = {"role": "user", "content": "Are you open on Sunday?"}
SAMPLING: dict[str, Any] = {"temperature": 0.2, "top_p": 0.9, "max_tokens": 128, "seed": 7}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "lookup_card",
            "description": "Why a card is blocked.",
            "parameters": {
                "type": "object",
                "properties": {"last_digits": {"type": "string"}},
                "required": ["last_digits"],
            },
        },
    }
]


def model_url() -> str:
    return os.environ["GOLDEN_URL"] + "/v1"


def tracer_provider() -> Any:
    """A provider that sends every span to the sink and is the global one."""
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource({"service.name": "help-desk"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(os.environ["GOLDEN_URL"] + "/v1/traces")))
    trace.set_tracer_provider(provider)
    return provider


def logger_provider() -> Any:
    """The same for log records, which carry message events."""
    from opentelemetry._logs import set_logger_provider
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.resources import Resource

    provider = LoggerProvider(resource=Resource({"service.name": "help-desk"}))
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(os.environ["GOLDEN_URL"] + "/v1/logs")))
    set_logger_provider(provider)
    return provider


def app_span(name: str) -> AbstractContextManager[Any]:
    """A span of the app's own, as a web framework's instrumentation makes one for each request."""
    from opentelemetry import trace

    return trace.get_tracer("help-desk").start_as_current_span(name)


def lookup_card(last_digits: str) -> str:
    """The tool. A package that records tools wraps it in its own way."""
    assert last_digits == "4242"
    return TOOL_RESULT


def converse(
    create: Callable[..., Any],
    request: Callable[[str], AbstractContextManager[Any]] = app_span,
    tool: Callable[..., str] = lookup_card,
) -> None:
    """Hold both conversations; `create` is `client.chat.completions.create`, `request` opens the app's span of one of them."""
    with request("card"):
        messages: list[dict[str, Any]] = [SYSTEM, QUESTION]
        asked = create(model=MODEL, messages=messages, tools=TOOLS, **SAMPLING).choices[0].message
        (call,) = asked.tool_calls
        answer = tool(**json.loads(call.function.arguments))
        result = {"role": "tool", "tool_call_id": call.id, "content": answer}
        request_again = {"role": "assistant", "content": None, "tool_calls": [call.model_dump(exclude_none=True)]}
        create(model=MODEL, messages=[*messages, request_again, result], tools=TOOLS, **SAMPLING)
    with request("hours"):
        stream = create(
            model=MODEL, messages=[SYSTEM, PLAIN_QUESTION], stream=True, stream_options={"include_usage": True}, **SAMPLING
        )
        for _ in stream:
            pass


def openai_client() -> Any:
    import openai

    return openai.OpenAI(base_url=model_url(), api_key="unused", max_retries=0)
