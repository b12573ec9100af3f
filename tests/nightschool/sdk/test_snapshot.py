"""What is recorded is what the app sent and got, whatever it does with its objects afterwards."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessage

import nightschool
from nightschool.sdk.span import RandomIds
from nightschool.testing import CapturedSpan, Collector, capture


@pytest.fixture
def collector() -> Iterator[Collector]:
    with capture() as running:
        yield running


def only_span(collector: Collector) -> CapturedSpan:
    assert nightschool.flush()
    (span,) = collector.spans
    return span


def answer() -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rīga"}'}}
    message = {"role": "assistant", "content": "hello", "tool_calls": [call], "reasoning_content": "because"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}
    return {"id": "r", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def test_messages_may_change_while_the_answer_is_awaited(collector: Collector) -> None:
    """An app that goes on with the same list, the same dict and the same part changes nothing that was recorded."""
    part = {"type": "text", "text": "asked"}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [part]}]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    with nightschool.model_call("m", messages, tools=tools):
        part["text"] = "changed"
        messages[0]["role"] = "changed"
        messages.append({"role": "assistant", "content": "changed"})
        tools[0]["function"]["parameters"]["type"] = "changed"  # type: ignore[index]
    attributes = only_span(collector).attributes
    assert json.loads(attributes["gen_ai.input.messages"]) == [{"role": "user", "parts": [{"type": "text", "content": "asked"}]}]
    assert "changed" not in attributes["gen_ai.tool.definitions"]


@pytest.mark.parametrize("kind", ["dict", "client"])
def test_an_answer_may_change_once_it_is_recorded(collector: Collector, kind: str) -> None:
    """An app that trims the model's message in place does not change what the model said."""
    given: Any = answer() if kind == "dict" else ChatCompletion.model_validate(answer())
    with nightschool.model_call("m", []) as call:
        call.respond(given)
        if kind == "dict":
            given["choices"][0]["message"]["content"] = "changed"
            given["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = "changed"
        else:
            given.choices[0].message.content = "changed"
            given.choices[0].message.tool_calls[0].function.arguments = "changed"
            given.usage.prompt_tokens = 99
    attributes = only_span(collector).attributes
    assert json.loads(attributes["gen_ai.output.messages"])[0]["parts"] == [
        {"type": "reasoning", "content": "because"},
        {"type": "text", "content": "hello"},
        {"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Rīga"}},
    ]
    assert attributes["gen_ai.usage.input_tokens"] == 3
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 2


def as_objects(data: Any) -> Any:
    """Plain data as objects with attributes, of a class that the tracer does not know."""
    if isinstance(data, dict):
        return SimpleNamespace(**{name: as_objects(value) for name, value in data.items()})
    return [as_objects(item) for item in data] if isinstance(data, list) else data


def test_plain_data_and_objects_say_the_same(collector: Collector) -> None:
    """A dict, the client's object and any other object with the same fields are recorded equally."""
    message = {"role": "assistant", "content": "earlier"}
    for messages, given in (
        ([message], answer()),
        ([ChatCompletionMessage.model_validate(message)], ChatCompletion.model_validate(answer())),
        ([SimpleNamespace(**message)], as_objects(answer())),
    ):
        with nightschool.model_call("m", messages) as call:  # type: ignore[arg-type]
            call.respond(given)
    assert nightschool.flush()
    first, *others = [span.attributes for span in collector.spans]
    assert first["gen_ai.response.id"] == "r"
    assert others == [first, first]
    assert nightschool.stats().internal_errors == 0


def test_an_app_that_seeds_random_still_gets_new_ids() -> None:
    """Ids come from a generator of their own: a fixed seed in the app must not make two processes share trace ids."""
    random.seed(0)
    first = RandomIds()
    ids = [first.generate_trace_id(), first.generate_span_id()]
    random.seed(0)
    second = RandomIds()
    assert ids != [second.generate_trace_id(), second.generate_span_id()]
    state = random.getstate()
    second.generate_trace_id()
    assert random.getstate() == state
