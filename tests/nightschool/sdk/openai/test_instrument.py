"""The official `openai` client against a real local server: spans hold what training needs, apps see no change."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

import nightschool
from nightschool.sdk.openai.instrument import uninstrument
from nightschool.testing import CapturedSpan, Collector, FixedClock, capture

GOLDEN = Path(__file__).parents[2] / "golden"
QUESTION = [{"role": "system", "content": "You route messages."}, {"role": "user", "content": "Card gone! 💳"}]
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": {"type": "object"}}}
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 3,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


class ChatServer:
    """Serves POST /v1/chat/completions as OpenAI and vLLM do; the last user message decides the answer."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        chat_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                chat_server.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
                text = str(body["messages"][-1]["content"])
                if text == "fail":
                    self.reply(429, {"error": {"message": "slow down", "type": "rate_limit", "code": "rate_limit"}})
                elif body.get("stream"):
                    self.stream(body, text)
                else:
                    self.reply(200, completion(body, text))

            def reply(self, status: int, data: dict[str, Any]) -> None:
                content = json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def stream(self, body: dict[str, Any], text: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for chunk in chunks(body, text):
                    self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                    self.wfile.flush()
                self.wfile.write(b"data: [DONE]\n\n")

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # the client left early
                    super().handle()

            def log_message(self, *_: Any) -> None:
                return None

        return Handler


def completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": f"answer to {text}"}
    finish_reason = "stop"
    if "tools" in body:
        call = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rīga"}'}}
        message, finish_reason = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
    if "response_format" in body:
        message["content"] = '{"queue": "cards"}'
    if text == "cut":
        message["content"], finish_reason = '{"que', "length"
    choices = [{"index": index, "message": message, "finish_reason": finish_reason} for index in range(body.get("n", 1))]
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "served-model"}
    return {**head, "choices": choices, "usage": USAGE}


def chunks(body: dict[str, Any], text: str) -> Iterator[dict[str, Any]]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "served-model"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": f"{word} "} for word in text.split())]
    finish_reason = "stop"
    if "tools" in body:
        finish_reason = "tool_calls"
        named = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "weather", "arguments": ""}}
        pieces = [{"index": 0, "function": {"arguments": piece}} for piece in ('{"city": ', '"Rīga"}')]
        deltas = [{"role": "assistant", "tool_calls": [named]}, *({"tool_calls": [piece]} for piece in pieces)]
    for delta in deltas:
        yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    if text == "break off":
        yield {"error": {"message": "engine died", "type": "server_error"}}
        return
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": USAGE}


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    running = ChatServer()
    yield running
    running.stop()


@pytest.fixture
def collector(server: ChatServer) -> Iterator[Collector]:
    server.requests.clear()
    with capture() as running:
        nightschool.instrument_openai()
        yield running
        uninstrument()


@pytest.fixture
def client(server: ChatServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
        yield client


def only_span(collector: Collector) -> CapturedSpan:
    assert nightschool.flush()
    assert nightschool.stats().internal_errors == 0
    (span,) = [span for span in collector.spans if span.name.startswith("chat")]
    return span


def content(span: CapturedSpan, which: str) -> Any:
    return json.loads(span.attributes[f"gen_ai.{which}.messages"])


def text_of(span: CapturedSpan) -> str:
    return "".join(part["content"] for part in content(span, "output")[0]["parts"])


def check_golden(name: str, span: CapturedSpan, server: ChatServer) -> None:
    """Compare what crosses the boundary with the file; the port is the only thing that may differ."""
    attributes = {**span.attributes}
    assert attributes.pop("server.port") == int(server.url.split(":")[2].removesuffix("/v1"))
    for key in ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.definitions"):
        if key in attributes:
            attributes[key] = json.loads(attributes[key])
    seen = {
        "name": span.name,
        "kind": span.kind,
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "status": span.status,
        "attributes": dict(sorted(attributes.items())),
    }
    assert seen == json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


# --- golden spans -----------------------------------------------------------------------------------------------------
def test_a_tool_conversation_is_recorded_whole(collector: Collector, client: openai.OpenAI, server: ChatServer) -> None:
    """Messages with tool calls and results, tool definitions, every parameter as sent, ids, usage and finish reason."""
    asked = {"id": "call-0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Vilnius"}'}}
    with nightschool.request(task="triage", user="mia", conversation="c1"):
        client.chat.completions.create(
            model="nightschool",
            messages=[
                *QUESTION,
                {"role": "assistant", "content": None, "tool_calls": [asked]},
                {"role": "tool", "tool_call_id": "call-0", "content": "4 degrees"},
                {"role": "user", "content": [{"type": "text", "text": "and here?"}]},
            ],
            tools=[WEATHER],
            temperature=1,
            top_p=0.9,
            max_completion_tokens=64,
            seed=7,
            stop=["\n"],
            frequency_penalty=0.5,
            presence_penalty=-0.5,
            extra_body={"top_k": 20},
        )
    check_golden("openai_tools", only_span(collector), server)


def test_a_stream_is_recorded_whole(collector: Collector, client: openai.OpenAI, server: ChatServer) -> None:
    """The pieces of a streamed answer are put together, with usage, finish reason and the time to the first chunk."""
    with nightschool.request(task="reply"):
        stream = client.chat.completions.create(
            model="nightschool", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        assert isinstance(stream, openai.Stream)
        words = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(words) == "Card gone! 💳 "
    check_golden("openai_stream", only_span(collector), server)


# --- the server's side ------------------------------------------------------------------------------------------------
def test_the_servers_span_can_join_the_trace(collector: Collector, client: openai.OpenAI, server: ChatServer) -> None:
    """The request carries a W3C traceparent that names our span; nothing else of the request changes."""
    with nightschool.request(task="triage") as req:
        client.chat.completions.create(model="nightschool", messages=QUESTION, extra_headers={"x-app": "1"})
    headers, body = server.requests[-1]
    span = only_span(collector)
    assert headers["traceparent"] == f"00-{req.trace_id}-{span.span_id}-01"
    assert headers["x-app"] == "1"
    assert body == {"model": "nightschool", "messages": QUESTION}
    assert req.response_id == "chatcmpl-1"


def test_the_apps_own_traceparent_is_left_alone(collector: Collector, client: openai.OpenAI, server: ChatServer) -> None:
    """An app that passes its own traceparent keeps it."""
    own = f"00-{'a' * 32}-{'b' * 16}-01"
    client.chat.completions.create(model="nightschool", messages=QUESTION, extra_headers={"Traceparent": own})
    assert server.requests[-1][0]["traceparent"] == own


# --- every way to call ------------------------------------------------------------------------------------------------
def test_sync(collector: Collector, client: openai.OpenAI) -> None:
    """A plain call is recorded and its answer is the client's own object."""
    answer = client.chat.completions.create(model="nightschool", messages=[{"role": "user", "content": "hi"}])
    assert isinstance(answer, openai.types.chat.ChatCompletion)
    assert text_of(only_span(collector)) == answer.choices[0].message.content == "answer to hi"


def test_every_other_parameter_of_a_request_is_known(collector: Collector, client: openai.OpenAI) -> None:
    """What changes the answer is recorded with its value, what nobody knows by its name; null and the harmless are not."""
    known = {"min_p": 0.1, "repetition_penalty": 1.1, "logit_bias": {"7": 1}, "response_format": {"type": "json_object"}}
    harmless = {"user": "u", "logprobs": True, "metadata": {"a": "b"}, "min_tokens": None}
    client.chat.completions.create(
        model="m", messages=QUESTION, extra_body={**known, **harmless, "chat_template_kwargs": {"a": 1}, "new_one": "secret"}
    )
    found = json.loads(only_span(collector).attributes["nightschool.request.parameters"])
    assert found == {**known, "chat_template_kwargs": None, "new_one": None}


def test_parameters_are_content_where_content_is_not_captured(collector: Collector, client: openai.OpenAI) -> None:
    """A schema or a bias may say as much as a message."""
    with nightschool.request(task="triage", capture_content=False):
        client.chat.completions.create(model="m", messages=QUESTION, extra_body={"min_p": 0.1, "new_one": "secret"})
    assert "nightschool.request.parameters" not in only_span(collector).attributes


def test_several_choices(collector: Collector, client: openai.OpenAI) -> None:
    """With n answers, each is a message and has a finish reason."""
    client.chat.completions.create(model="nightschool", messages=QUESTION, n=3)
    span = only_span(collector)
    assert len(content(span, "output")) == 3
    assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"] * 3


def test_streamed_tool_calls(collector: Collector, client: openai.OpenAI) -> None:
    """A tool call that comes in pieces is one part, its arguments parsed."""
    for _ in client.chat.completions.create(model="nightschool", messages=QUESTION, tools=[WEATHER], stream=True):
        pass
    span = only_span(collector)
    assert content(span, "output") == [
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "call-1", "name": "weather", "arguments": {"city": "Rīga"}}],
        }
    ]
    assert span.attributes["gen_ai.response.finish_reasons"] == ["tool_calls"]


class Routed(pydantic.BaseModel):
    queue: str


def test_parsed(collector: Collector, client: openai.OpenAI) -> None:
    """`parse` is recorded like `create`."""
    parsed = client.chat.completions.parse(model="nightschool", messages=QUESTION, response_format=Routed)
    assert parsed.choices[0].message.parsed == Routed(queue="cards")
    assert text_of(only_span(collector)) == '{"queue": "cards"}'


def test_an_answer_that_cannot_be_parsed_is_still_recorded(collector: Collector, client: openai.OpenAI) -> None:
    """Where `parse` raises because the answer was cut, the app gets its error and the span both answer and error."""
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="m", messages=[{"role": "user", "content": "cut"}], response_format=Routed)
    span = only_span(collector)
    assert text_of(span) == '{"que'
    assert (span.status, span.attributes["error.type"]) == ("ERROR", "LengthFinishReasonError")


def test_raw_responses(collector: Collector, client: openai.OpenAI) -> None:
    """`with_raw_response` is recorded, and the raw response is untouched."""
    raw = client.chat.completions.with_raw_response.create(model="nightschool", messages=[{"role": "user", "content": "hi"}])
    assert raw.status_code == 200
    assert raw.parse().choices[0].message.content == "answer to hi"
    assert text_of(only_span(collector)) == "answer to hi"


def test_raw_streams(collector: Collector, client: openai.OpenAI) -> None:
    """A raw response that is parsed into a stream is recorded as it is read."""
    raw = client.chat.completions.with_raw_response.create(model="m", messages=QUESTION, stream=True)
    assert sum(1 for _ in raw.parse()) == 5
    assert text_of(only_span(collector)) == "Card gone! 💳 "


def test_the_stream_helper(collector: Collector, client: openai.OpenAI) -> None:
    """`chat.completions.stream` is recorded once, also when its events are read."""
    with client.chat.completions.stream(model="m", messages=QUESTION) as stream:
        kinds = {event.type for event in stream}
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert text_of(only_span(collector)) == "Card gone! 💳 "


@pytest.mark.parametrize("how", ["read", "text", "json", "iter_bytes", "iter_lines", "parse"])
def test_bodies_read_by_hand(collector: Collector, client: openai.OpenAI, how: str) -> None:
    """`with_streaming_response` is recorded however the app reads the body."""
    hi = [{"role": "user", "content": "hi"}]
    with client.chat.completions.with_streaming_response.create(model="m", messages=hi) as raw:
        got = getattr(raw, how)()
        assert "answer to hi" in str(list(got) if how.startswith("iter") else got)
    assert text_of(only_span(collector)) == "answer to hi"


def test_a_body_not_read_is_recorded_without_an_answer(collector: Collector, client: openai.OpenAI) -> None:
    """When the app does not read the body, nothing is recorded about the answer."""
    with client.chat.completions.with_streaming_response.create(model="m", messages=QUESTION):
        pass
    attributes = only_span(collector).attributes
    assert "gen_ai.input.messages" in attributes
    assert "gen_ai.output.messages" not in attributes


@pytest.mark.parametrize("how", ["parse", "iter_lines", "iter_bytes"])
def test_event_streams_read_by_hand(collector: Collector, client: openai.OpenAI, how: str) -> None:
    """Server-sent events that the app reads itself are put together as they pass."""
    create = client.chat.completions.with_streaming_response.create
    with create(model="m", messages=QUESTION, stream=True) as raw:
        assert len(list(getattr(raw, how)())) >= 1
    span = only_span(collector)
    assert text_of(span) == "Card gone! 💳 "
    assert "gen_ai.response.time_to_first_chunk" in span.attributes


async def test_async_bodies_read_by_hand(collector: Collector, server: ChatServer) -> None:
    """The async client's bodies too."""
    async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
        create = client.chat.completions.with_streaming_response.create
        async with create(model="m", messages=[{"role": "user", "content": "hi"}]) as raw:
            assert b"answer to hi" in await raw.read()
        async with create(model="m", messages=QUESTION, stream=True) as raw:
            assert [line async for line in raw.iter_lines()]
    await asyncio.to_thread(nightschool.flush)
    assert [text_of(span) for span in collector.spans] == ["answer to hi", "Card gone! 💳 "]


async def test_async(collector: Collector, server: ChatServer) -> None:
    """Many async calls at once, plain and streamed, each land in their own request."""

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        with nightschool.request(task=f"t{number}") as req:
            messages: Any = [{"role": "user", "content": f"message {number}"}]
            if number % 2:
                stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
                assert isinstance(stream, openai.AsyncStream)
                assert [chunk async for chunk in stream]
            else:
                await client.chat.completions.create(model="m", messages=messages)
            assert req.response_id == "chatcmpl-1"

    async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
        await asyncio.gather(*(ask(client, number) for number in range(10)))
    assert await asyncio.to_thread(nightschool.flush)
    calls = [span for span in collector.spans if span.name == "chat m"]
    assert len(calls) == 10
    for span in calls:
        assert text_of(span).strip().endswith(f"message {span.attributes['nightschool.task'][1:]}")
    assert nightschool.stats().internal_errors == 0


# --- leaving early ----------------------------------------------------------------------------------------------------
def test_a_stream_closed_early_is_recorded_as_far_as_it_was_read(collector: Collector, client: openai.OpenAI) -> None:
    """Leaving the block ends the span at once, with what was read and without a finish reason."""
    with client.chat.completions.create(model="m", messages=QUESTION, stream=True) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content == "Card ":
                break
    span = only_span(collector)
    assert text_of(span) == "Card "
    assert span.status == "UNSET"
    assert "gen_ai.response.finish_reasons" not in span.attributes


def test_the_stream_helper_closed_early(collector: Collector, client: openai.OpenAI) -> None:
    """The helper's block ends the span too."""
    with client.chat.completions.stream(model="m", messages=QUESTION) as stream:
        for event in stream:
            if event.type == "content.delta" and event.delta == "Card ":
                break
    assert text_of(only_span(collector)) == "Card "


def test_a_stream_dropped_unclosed_is_recorded_when_collected(collector: Collector, client: openai.OpenAI) -> None:
    """A stream that the app drops is recorded when Python collects it."""
    stream = client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    next(stream)
    next(stream)
    del stream
    gc.collect()
    assert text_of(only_span(collector)) == "Card "


async def test_an_async_stream_closed_early(collector: Collector, server: ChatServer) -> None:
    """An async stream left early ends its span when its block is left."""
    async with openai.AsyncOpenAI(base_url=server.url, api_key="k", max_retries=0) as client:
        async with await client.chat.completions.create(model="m", messages=QUESTION, stream=True) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content == "Card ":
                    break
        span = await asyncio.to_thread(only_span, collector)
    assert text_of(span) == "Card "


# --- errors -----------------------------------------------------------------------------------------------------------
def test_an_error_of_the_server_is_recorded_and_raised(collector: Collector, client: openai.OpenAI) -> None:
    """The app gets the client's own error; the span keeps the request and says which error it was."""
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "fail"}])
    span = only_span(collector)
    assert (span.status, span.attributes["error.type"]) == ("ERROR", "RateLimitError")
    assert content(span, "input")[0]["parts"] == [{"type": "text", "content": "fail"}]
    assert "gen_ai.output.messages" not in span.attributes


async def test_an_unreachable_server_is_recorded_and_raised(collector: Collector) -> None:
    """Retries of the client are one call with one error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=1) as client:
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(model="m", messages=QUESTION)
    span = await asyncio.to_thread(only_span, collector)
    assert span.attributes["error.type"] == "APIConnectionError"


def test_an_error_in_the_middle_of_a_stream_is_recorded(collector: Collector, client: openai.OpenAI) -> None:
    """A stream that breaks keeps what had come, and the error."""
    with pytest.raises(openai.APIError, match="engine died"):
        list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "break off"}], stream=True))
    span = only_span(collector)
    assert text_of(span) == "break off "
    assert (span.status, span.attributes["error.type"]) == ("ERROR", "APIError")


# --- being a guest ----------------------------------------------------------------------------------------------------
def test_instrumenting_twice_records_once(collector: Collector, client: openai.OpenAI) -> None:
    """A second `instrument_openai` changes nothing."""
    nightschool.instrument_openai()
    client.chat.completions.create(model="m", messages=QUESTION)
    assert only_span(collector)


def test_uninstrumenting_puts_the_client_back() -> None:
    """After `uninstrument` the classes hold what they held before."""
    before = openai.OpenAI.request, openai.AsyncOpenAI.request
    nightschool.instrument_openai()
    assert openai.OpenAI.request is not before[0]
    uninstrument()
    assert (openai.OpenAI.request, openai.AsyncOpenAI.request) == before


class StoppingClock(FixedClock):
    """A clock that fails from its `num_good + 1`st reading on."""

    def __init__(self, num_good: int) -> None:
        super().__init__()
        self.num_good = num_good

    def __call__(self) -> int:
        self.num_good -= 1
        if self.num_good < 0:
            raise OSError("no clock")
        return super().__call__()


@pytest.mark.parametrize("num_good", range(6))
def test_the_app_works_when_our_recording_fails(server: ChatServer, monkeypatch: pytest.MonkeyPatch, num_good: int) -> None:
    """In production a fault of ours at any point of a call leaves the app with its answer."""
    monkeypatch.setenv("NIGHTSCHOOL_STRICT", "0")
    with capture(clock=StoppingClock(num_good)), openai.OpenAI(base_url=server.url, api_key="k") as client:
        nightschool.instrument_openai()
        with nightschool.request(task="triage"):
            assert client.chat.completions.create(model="m", messages=QUESTION).id == "chatcmpl-1"
            assert len(list(client.chat.completions.create(model="m", messages=QUESTION, stream=True))) == 5
        uninstrument()
        assert nightschool.stats().internal_errors >= 1


def test_other_calls_of_the_client_are_left_alone(collector: Collector, client: openai.OpenAI, server: ChatServer) -> None:
    """What asks no model for an answer passes untouched."""
    with pytest.raises(openai.APIStatusError):
        client.responses.retrieve("r1")
    with pytest.raises(openai.APIStatusError):
        client.models.list()
    nightschool.flush()
    assert not collector.spans


def test_time_moves_with_the_stream(server: ChatServer) -> None:
    """Time to first chunk is measured from the start of the call to the first chunk."""
    with capture(clock=FixedClock(step_ns=250_000_000)) as collector:
        nightschool.instrument_openai()
        with openai.OpenAI(base_url=server.url, api_key="k") as client:
            list(client.chat.completions.create(model="m", messages=QUESTION, stream=True))
        span = only_span(collector)
        uninstrument()
    assert span.attributes["gen_ai.response.time_to_first_chunk"] == 0.25
