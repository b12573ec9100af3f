"""What stored OTLP bytes say about a model call, and that no bytes can stop a night."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool import semconv as names
from nightschool.episode import Message, OtherPart, TextPart, ToolCallPart, ToolResponsePart
from nightschool.errors import RecordError
from nightschool.otlp.attributes import attributes_of
from nightschool_nightly.dialects.call import context_of, request_of, tools_of
from nightschool_nightly.dialects.messages import read_message, read_messages
from nightschool_nightly.dialects.record import read_spans

TOOL = {"type": "function", "name": "lookup", "description": "d", "parameters": {"type": "object"}}
CHAT_TOOL = {"type": "function", "function": {"name": "lookup", "description": "d", "parameters": {"type": "object"}}}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "parts", "type", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def request(**attributes: str) -> ExportTraceServiceRequest:
    """One span of a model call; `_` in a name stands for a dot."""
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    resource.resource.attributes.add(key=names.TASK).value.string_value = "task-of-resource"
    span = resource.scope_spans.add().spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8, start_time_unix_nano=7)
    for name, value in {names.GEN_AI_OPERATION_NAME: "chat", **attributes}.items():
        span.attributes.add(key=name).value.string_value = value
    return message


def test_a_span_is_read_with_what_the_episode_needs() -> None:
    """Ids in hex, task of the span before that of the resource, everything else under its attribute."""
    (row,) = read_spans(request(**{names.GEN_AI_RESPONSE_ID: "r1", names.SUBJECT: "u1"}).SerializeToString())
    assert (row.trace_id, row.span_id, row.started_ns) == ("01" * 16, "02" * 8, 7)
    assert (row.side, row.is_model_call, row.response_id, row.subject, row.task) == ("app", True, "r1", "u1", "task-of-resource")
    (row,) = read_spans(request(**{names.TASK: "mine"}).SerializeToString())
    assert row.task == "mine"


@pytest.mark.parametrize(
    ("attributes", "is_call"),
    [
        ({}, True),
        ({names.GEN_AI_OPERATION_NAME: "text_completion"}, True),
        ({names.GEN_AI_OPERATION_NAME: "execute_tool"}, False),
        ({names.GEN_AI_OPERATION_NAME: "embeddings"}, False),
        ({names.ERROR_TYPE: "timeout"}, False),
    ],
)
def test_only_answered_model_calls_are_calls(attributes: dict[str, str], is_call: bool) -> None:
    """Tools, embeddings and failed calls are spans, but no calls to learn from."""
    (row,) = read_spans(request(**attributes).SerializeToString())
    assert row.is_model_call is is_call


@pytest.mark.parametrize(("said", "side"), [("server", "server"), ("app", "app"), ("proxy", "app")])
def test_a_side_we_do_not_know_is_the_apps(said: str, side: str) -> None:
    """Only our server says `server`; a call is never lost because its side has an unknown name."""
    (row,) = read_spans(request(**{names.SPAN_SIDE: said}).SerializeToString())
    assert row.side == side


def test_attributes_of_every_kind_become_plain_values() -> None:
    """Arrays, tables, bytes and empty values are read as lists, dictionaries, hex and None."""
    message = request()
    attributes = message.resource_spans[0].scope_spans[0].spans[0].attributes
    attributes.add(key="list").value.array_value.values.add().int_value = 3
    attributes.add(key="table").value.kvlist_value.values.add(key="a").value.bool_value = True
    attributes.add(key="bytes").value.bytes_value = b"\xff"
    attributes.add(key="nothing")
    found = attributes_of(attributes)
    assert {name: found[name] for name in ("list", "table", "bytes", "nothing")} == {
        "list": [3],
        "table": {"a": True},
        "bytes": "ff",
        "nothing": None,
    }


def test_bytes_that_are_no_request_are_a_record_error() -> None:
    """The error says how many bytes were not understood."""
    with pytest.raises(RecordError, match="a span record of 3 bytes is not an ExportTraceServiceRequest"):
        list(read_spans(b"\xff\xff\xff"))


def test_messages_are_read_with_their_parts() -> None:
    """Text, tool calls and tool answers (under either name) have types; any other part passes through whole."""
    parts: list[dict[str, Any]] = [
        {"type": "text", "content": "hi"},
        {"type": "tool_call", "name": "lookup", "id": "c1", "arguments": {"a": 1}},
        {"type": "tool_call_response", "id": "c1", "response": 5},
        {"type": "tool_call_response", "result": "old"},
        {"type": "reasoning", "content": "hm"},
        {"type": "text", "content": 3},
    ]
    value = [{"role": "user", "parts": parts, "name": "ann", "extra": 1}]
    expected = Message(
        "user",
        (
            TextPart("hi"),
            ToolCallPart("lookup", "c1", {"a": 1}),
            ToolResponsePart(5, "c1"),
            ToolResponsePart("old", None),
            OtherPart(parts[4]),
            OtherPart(parts[5]),
        ),
        "ann",
    )
    assert read_messages(value) == read_messages(json.dumps(value)) == (expected,)


@pytest.mark.parametrize(
    "value",
    [None, "", "not json", "{}", 5, [{"role": "user"}], [{"parts": []}], [{"role": "user", "parts": []}, 3], "[" * 100_000],
)
def test_content_that_was_not_captured_is_none(value: Any) -> None:
    """Messages are all understood or not at all: a conversation with a hole is another conversation."""
    assert read_messages(value) is None


def test_system_instructions_come_first() -> None:
    """They are a message of their own before the input messages, as JSON text or structured."""
    messages = [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
    system = [{"type": "text", "content": "be brief"}]
    for given_system in (system, json.dumps(system)):
        found = context_of({names.GEN_AI_INPUT_MESSAGES: messages, names.GEN_AI_SYSTEM_INSTRUCTIONS: given_system})
        assert found == (Message("system", (TextPart("be brief"),)), Message("user", (TextPart("hi"),)))


@pytest.mark.parametrize("system", ["be brief", "{}", 7, "[" * 100_000, [3]])
def test_system_instructions_that_are_not_understood_are_not_left_out(system: Any) -> None:
    """A prompt without its system instructions would be another prompt: the context is not known then."""
    messages = [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]
    assert context_of({names.GEN_AI_INPUT_MESSAGES: messages, names.GEN_AI_SYSTEM_INSTRUCTIONS: system}) is None


def test_tools_are_nested_for_chat_templates() -> None:
    """The flat definitions of the conventions go under `function`; nested ones and other types stay."""
    other = {"type": "web_search"}
    assert tools_of({names.GEN_AI_TOOL_DEFINITIONS: json.dumps([TOOL, other])}) == (CHAT_TOOL, other)
    assert tools_of({names.GEN_AI_TOOL_DEFINITIONS: [CHAT_TOOL]}) == (CHAT_TOOL,)
    assert tools_of({names.GEN_AI_TOOL_DEFINITIONS: "not json"}) == tools_of({}) == ()


def test_sampling_parameters_are_as_sent_or_absent() -> None:
    """What was not sent is absent; what no sampler accepts stays as it was sent, for a night to leave out by name."""
    sent = {
        names.GEN_AI_REQUEST_TEMPERATURE: 0.0,
        names.GEN_AI_REQUEST_TOP_P: 1,
        names.GEN_AI_REQUEST_TOP_K: 20,
        names.GEN_AI_REQUEST_MAX_TOKENS: 16,
        names.GEN_AI_REQUEST_SEED: 3,
        names.GEN_AI_REQUEST_STOP_SEQUENCES: ["\n"],
        names.REQUEST_PARAMETERS: '{"min_p": 0.1, "new_thing": null}',
    }
    assert request_of(sent) == {
        "temperature": 0.0,
        "top_p": 1,
        "top_k": 20,
        "max_tokens": 16,
        "seed": 3,
        "stop_sequences": ["\n"],
        "min_p": 0.1,
        "new_thing": None,
    }
    odd = {names.GEN_AI_REQUEST_TEMPERATURE: "hot", names.GEN_AI_REQUEST_STOP_SEQUENCES: [""]}
    assert request_of(odd) == {"temperature": "hot", "stop_sequences": [""]}
    assert request_of({names.REQUEST_PARAMETERS: "not JSON"}) == {names.REQUEST_PARAMETERS: None}
    assert request_of({names.GEN_AI_REQUEST_MAX_TOKENS: None}) == {}


@settings(max_examples=60, deadline=None)
@given(value=json_values)
def test_no_attribute_value_is_an_error(value: Any) -> None:
    """Whatever an app puts into an attribute, reading it never raises."""
    read_message(value)
    for name in (
        names.GEN_AI_INPUT_MESSAGES,
        names.GEN_AI_SYSTEM_INSTRUCTIONS,
        names.GEN_AI_TOOL_DEFINITIONS,
        names.GEN_AI_REQUEST_MAX_TOKENS,
        names.REQUEST_PARAMETERS,
    ):
        attributes = {names.GEN_AI_INPUT_MESSAGES: [{"role": "user", "parts": []}], name: value}
        context_of(attributes), tools_of(attributes), request_of(attributes)
