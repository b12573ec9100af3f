"""The `openai` client's other ways to ask a model, and its retries, against a real local server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest

import nightschool
from nightschool.sdk.openai.instrument import uninstrument
from nightschool.testing import CapturedSpan, Collector, capture

HISTORY: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "weather?"}, {"type": "input_image", "image_url": "https://x/y.png"}],
    },
    {"type": "reasoning", "id": "rs_0", "summary": [{"type": "summary_text", "text": "ask the tool"}]},
    {"type": "function_call", "call_id": "c0", "name": "weather", "arguments": '{"city": "Rīga"}'},
    {"type": "function_call_output", "call_id": "c0", "output": "4 degrees"},
    {"role": "user", "content": "and tomorrow?"},
]
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


def response(text: str, *, status: str = "completed", reason: str | None = None, call: bool = False) -> dict[str, Any]:
    """A Responses API answer, as OpenAI and vLLM send it."""
    output: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        },
    ]
    if call:
        output.append(
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}", "status": "completed"}
        )
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "served",
        "status": status,
        "incomplete_details": {"reason": reason} if reason else None,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 8},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": 14,
        },
    }


def completion(text: str) -> dict[str, Any]:
    choices = [{"index": 0, "text": text, "finish_reason": "length", "logprobs": None}]
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "served", "choices": choices, "usage": usage}


def chat(text: str) -> dict[str, Any]:
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "served", "choices": choices, "usage": None}


def events(body: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
    """The same answers in pieces."""
    if path.endswith("/responses"):
        whole = response("one two")
        yield {
            "type": "response.created",
            "sequence_number": 0,
            "response": {**whole, "status": "in_progress", "output": [], "usage": None},
        }
        for number, piece in enumerate(("one ", "two")):
            place = {"item_id": "msg_1", "output_index": 1, "content_index": 0, "logprobs": []}
            yield {"type": "response.output_text.delta", "sequence_number": 1 + number, "delta": piece, **place}
        yield {"type": "response.completed", "sequence_number": 3, "response": whole}
        return
    for piece, reason in (("one ", None), ("two", "stop")):
        yield {
            **completion(piece),
            "choices": [{"index": 0, "text": piece, "finish_reason": reason, "logprobs": None}],
            "usage": None,
        }


class Server:
    """Answers the three endpoints; refuses the first `num_refusals` requests with 500, or closes the connection."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        self.num_refusals = 0
        self.answer: dict[str, Any] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                if outer.num_refusals:
                    outer.num_refusals -= 1
                    self.reply(500, "application/json", b'{"error": {"message": "again"}}', ("retry-after-ms", "1"))
                elif body.get("stream"):
                    lines = [f"event: {e.get('type')}\ndata: {json.dumps(e)}\n\n" for e in events(body, self.path)]
                    self.reply(200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode())
                else:
                    made = {"/v1/responses": response, "/v1/completions": completion, "/v1/chat/completions": chat}[self.path]
                    self.reply(200, "application/json", json.dumps(outer.answer or made("hello")).encode())

            def reply(self, status: int, kind: str, content: bytes, *headers: tuple[str, str]) -> None:
                self.send_response(status)
                for name, value in (("Content-Type", kind), ("Content-Length", str(len(content))), *headers):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def log_message(self, *_: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with capture() as running:
        nightschool.instrument_openai()
        yield running
        uninstrument()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="k", max_retries=3) as client:
        yield client


def only_span(collector: Collector) -> CapturedSpan:
    assert nightschool.flush()
    assert nightschool.stats().internal_errors == 0
    (span,) = collector.spans
    return span


def content(span: CapturedSpan, which: str) -> Any:
    return json.loads(span.attributes[which])


# --- responses --------------------------------------------------------------------------------------------------------
def test_a_response_is_recorded_like_a_chat(collector: Collector, client: openai.OpenAI) -> None:
    """Items become messages: what the model produced in a row is one, tool calls and results keep their ids."""
    answer = client.responses.create(
        model="m", instructions="Be short.", input=HISTORY, tools=[TOOL], temperature=0.5, max_output_tokens=64
    )
    assert answer.output_text == "hello"
    span = only_span(collector)
    assert (span.name, span.attributes["gen_ai.operation.name"]) == ("chat m", "chat")
    assert content(span, "gen_ai.system_instructions") == [{"type": "text", "content": "Be short."}]
    assert content(span, "gen_ai.input.messages") == [
        {
            "role": "user",
            "parts": [{"type": "text", "content": "weather?"}, {"type": "uri", "modality": "image", "uri": "https://x/y.png"}],
        },
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "ask the tool"},
                {"type": "tool_call", "id": "c0", "name": "weather", "arguments": {"city": "Rīga"}},
            ],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "response": "4 degrees", "id": "c0"}]},
        {"role": "user", "parts": [{"type": "text", "content": "and tomorrow?"}]},
    ]
    assert content(span, "gen_ai.output.messages") == [
        {"role": "assistant", "parts": [{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "hello"}]}
    ]
    assert content(span, "gen_ai.tool.definitions") == [TOOL]
    said = {name.removeprefix("gen_ai."): value for name, value in span.attributes.items()}
    assert (said["request.temperature"], said["request.max_tokens"]) == (0.5, 64)
    assert (said["response.id"], said["response.model"], said["response.finish_reasons"]) == ("resp_1", "served", ["stop"])
    assert (said["usage.input_tokens"], said["usage.output_tokens"]) == (11, 3)
    assert (said["usage.cache_read.input_tokens"], said["usage.reasoning.output_tokens"]) == (8, 1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response("x", call=True), "tool_calls"),
        (response("x", status="incomplete", reason="max_output_tokens"), "length"),
        (response("x", status="incomplete", reason="content_filter"), "content_filter"),
        (response("x", status="failed"), "error"),
    ],
)
def test_why_a_response_ended(collector: Collector, client: openai.OpenAI, server: Server, answer: Any, reason: str) -> None:
    """Finish reasons are a chat's, so that a night needs to know only those."""
    server.answer = answer
    client.responses.create(model="m", input="hi")
    assert only_span(collector).attributes["gen_ai.response.finish_reasons"] == [reason]


def test_a_streamed_response(collector: Collector, client: openai.OpenAI) -> None:
    """The last event holds the whole answer."""
    kinds = [event.type for event in client.responses.create(model="m", input="hi", stream=True)]
    assert kinds[-1] == "response.completed"
    span = only_span(collector)
    assert content(span, "gen_ai.output.messages")[0]["parts"][1] == {"type": "text", "content": "one two"}
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert "gen_ai.response.time_to_first_chunk" in span.attributes


def test_a_streamed_response_left_early(collector: Collector, client: openai.OpenAI) -> None:
    """What was read is recorded, without a finish reason."""
    with client.responses.create(model="m", input="hi", stream=True) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                break
    span = only_span(collector)
    assert content(span, "gen_ai.output.messages") == [{"role": "assistant", "parts": [{"type": "text", "content": "one "}]}]
    assert span.attributes["gen_ai.response.id"] == "resp_1"
    assert "gen_ai.response.finish_reasons" not in span.attributes


@pytest.mark.parametrize(
    "kept",
    [{"previous_response_id": "resp_0"}, {"conversation": "conv_1"}, {"input": [{"type": "item_reference", "id": "msg_0"}]}],
)
def test_half_a_context_is_none(collector: Collector, client: openai.OpenAI, kept: dict[str, Any]) -> None:
    """When the provider keeps a part of the model's input, the input is left out; the answer is recorded."""
    client.responses.create(model="m", **{"input": "go on", **kept})
    span = only_span(collector)
    assert "gen_ai.input.messages" not in span.attributes
    assert "gen_ai.output.messages" in span.attributes


# --- completions ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prompt", ["Once upon", ["Once upon"]])
def test_a_text_completion(collector: Collector, client: openai.OpenAI, prompt: Any) -> None:
    """A prompt is a user message and the completion an assistant's, under an operation of its own."""
    client.completions.create(model="m", prompt=prompt, max_tokens=3)
    span = only_span(collector)
    assert (span.name, span.attributes["gen_ai.operation.name"]) == ("text_completion m", "text_completion")
    assert content(span, "gen_ai.input.messages") == [{"role": "user", "parts": [{"type": "text", "content": "Once upon"}]}]
    assert content(span, "gen_ai.output.messages") == [{"role": "assistant", "parts": [{"type": "text", "content": "hello"}]}]
    assert span.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert (span.attributes["gen_ai.usage.input_tokens"], span.attributes["gen_ai.request.max_tokens"]) == (2, 3)


@pytest.mark.parametrize("prompt", [[1, 2, 3], ["one", "two"]])
def test_a_prompt_without_one_text_is_left_out(collector: Collector, client: openai.OpenAI, prompt: Any) -> None:
    """A prompt of token ids, and several prompts at once, give no message."""
    client.completions.create(model="m", prompt=prompt)
    assert "gen_ai.input.messages" not in only_span(collector).attributes


async def test_a_streamed_completion_of_the_async_client(collector: Collector, server: Server) -> None:
    """Pieces are put together here too."""
    async with openai.AsyncOpenAI(base_url=server.url, api_key="k") as client:
        stream = await client.completions.create(model="m", prompt="x", stream=True)
        assert [chunk.choices[0].text async for chunk in stream] == ["one ", "two"]
        responses = await client.responses.create(model="m", input="hi")
        assert responses.output_text == "hello"
    assert await asyncio.to_thread(nightschool.flush)
    texts = [content(span, "gen_ai.output.messages")[0]["parts"][-1]["content"] for span in collector.spans]
    assert texts == ["one two", "hello"]
    assert collector.spans[0].attributes["gen_ai.response.finish_reasons"] == ["stop"]


@pytest.mark.parametrize("path", ["completions", "responses"])
def test_without_content_counts_stay(server: Server, path: str) -> None:
    """When texts are not to be recorded, these endpoints leave them out too."""
    with capture(capture_content=False) as collector, openai.OpenAI(base_url=server.url, api_key="k") as client:
        nightschool.instrument_openai()
        try:
            if path == "completions":
                client.completions.create(model="m", prompt="secret")
            else:
                client.responses.create(model="m", input="secret", instructions="secret", tools=[TOOL])
        finally:
            uninstrument()
        span = only_span(collector)
        assert span.attributes["gen_ai.usage.output_tokens"] == 3
        assert not any(b"secret" in request.body or b"hello" in request.body for request in collector.requests)
        assert server.headers[-1]["x-nightschool-capture"] == "off"


# --- retries ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("num_refusals", [0, 1, 2])
def test_the_clients_own_retries_are_one_call(
    collector: Collector, client: openai.OpenAI, server: Server, num_refusals: int
) -> None:
    """One span however often the client sends, with the number of retries; each attempt has the same traceparent."""
    server.num_refusals = num_refusals
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    span = only_span(collector)
    assert len(server.headers) == 1 + num_refusals
    assert span.attributes.get("http.request.resend_count", 0) == num_refusals
    assert {headers["traceparent"] for headers in server.headers} == {f"00-{span.trace_id}-{span.span_id}-01"}
    assert span.status == "UNSET"


async def test_retries_of_concurrent_calls_do_not_mix(collector: Collector, server: Server) -> None:
    """Each call counts its own attempts."""
    server.num_refusals = 4
    async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=10) as client:
        calls = (client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}]) for _ in range(8))
        await asyncio.gather(*calls)
    assert await asyncio.to_thread(nightschool.flush)
    assert len(collector.spans) == 8
    assert sum(span.attributes.get("http.request.resend_count", 0) for span in collector.spans) == 4
    for span in collector.spans:
        sent = [h for h in server.headers if h["traceparent"].split("-")[2] == span.span_id]
        assert len(sent) == 1 + span.attributes.get("http.request.resend_count", 0)


def test_a_call_that_never_succeeds_counts_its_attempts(collector: Collector, server: Server) -> None:
    """When the client gives up, the span has the error and how often it was tried again."""
    server.num_refusals = 10
    with openai.OpenAI(base_url=server.url, api_key="k", max_retries=2) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    span = only_span(collector)
    assert (span.attributes["error.type"], span.attributes["http.request.resend_count"]) == ("InternalServerError", 2)
