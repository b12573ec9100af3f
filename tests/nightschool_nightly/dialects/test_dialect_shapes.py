"""Shapes that no recording holds: repaired messages, annotations, older spellings, and whatever a client makes up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from nightschool import semconv as names
from nightschool.episode import Message, OtherPart, TextPart, ToolCallPart, ToolResponsePart
from nightschool.errors import RecordError
from nightschool_nightly.dialects.call import context_of, request_of, tools_of
from nightschool_nightly.dialects.messages import read_message, read_messages
from nightschool_nightly.dialects.record import SpanRow, read_events, read_spans, with_events
from nightschool_nightly.dialects.span import unflatten

CALL = ToolCallPart("lookup", "c1", {"a": 1})


def any_value(value: Any) -> AnyValue:
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=[any_value(item) for item in value]))
        case dict():
            pairs = [KeyValue(key=key, value=any_value(item)) for key, item in value.items()]
            return AnyValue(kvlist_value=KeyValueList(values=pairs))
        case _:
            return AnyValue(string_value=value)


def record(attributes: dict[str, Any], *, name: str = "span", scope: str = "test", failed: bool = False) -> bytes:
    """One span as a stored record."""
    request = ExportTraceServiceRequest()
    scopes = request.resource_spans.add().scope_spans.add()
    scopes.scope.name = scope
    span = scopes.spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8, name=name, end_time_unix_nano=1_790_000_000 * 10**9)
    span.attributes.extend(KeyValue(key=key, value=any_value(value)) for key, value in attributes.items())
    if failed:
        span.status.code = Status.STATUS_CODE_ERROR
    return request.SerializeToString()


def row(attributes: dict[str, Any], **options: Any) -> SpanRow:
    (found,) = read_spans(record(attributes, **options))
    return found


# --- messages -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given_role", "role"),
    [
        ("Human", "user"),
        ("AI", "assistant"),
        ("ai", "assistant"),
        ("model", "assistant"),
        ("function", "tool"),
        ("judge", "judge"),
    ],
)
def test_roles_have_one_name(given_role: str, role: str) -> None:
    """Other libraries' names of the usual roles are repaired; a role that is not known stays."""
    found = read_message({"role": given_role, "parts": []})
    assert found is not None
    assert found.role == role


@pytest.mark.parametrize(
    "value",
    [
        {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "lookup", "arguments": '{"a": 1}'}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "name": "lookup", "args": {"a": 1}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "lookup", "input": {"a": 1}}]},
        {"role": "assistant", "content": [{"type": "tool-call", "toolCallId": "c1", "toolName": "lookup", "input": '{"a": 1}'}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "lookup", "arguments": '{"a": 1}'}]},
        {
            "id": ["langchain", "AIMessage"],
            "kwargs": {"content": [], "tool_calls": [{"id": "c1", "name": "lookup", "args": {"a": 1}}]},
        },
    ],
)
def test_a_tool_call_is_one_however_it_is_written(value: dict[str, Any]) -> None:
    """Chat APIs, LangChain, Anthropic, the Vercel AI SDK: name, id, and arguments as an object."""
    assert read_message(value) == Message("assistant", (CALL,))


@pytest.mark.parametrize(
    "value",
    [
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
        {"role": "tool", "id": "c1", "content": "5"},
        {"type": "tool", "tool_call_id": "c1", "content": "5"},
        {"role": "tool", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "5"}]},
        {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "c1", "output": {"type": "text", "value": "5"}}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "result": "5"}]},
    ],
)
def test_a_tool_answer_is_one_however_it_is_written(value: dict[str, Any]) -> None:
    """`tool_call_id` and similar names become the id, whatever holds the answer becomes the response."""
    assert read_message(value) == Message("tool", (ToolResponsePart("5", "c1"),))


@pytest.mark.parametrize(
    "content",
    ["hi", ["hi"], [{"type": "text", "text": "hi"}], [{"type": "input_text", "text": "hi"}], [{"type": "text", "content": "hi"}]],
)
def test_content_as_text_or_list_becomes_parts(content: Any) -> None:
    """One text part in each case; `type: human` is a role where no role is given."""
    assert read_message({"role": "user", "content": content}) == Message("user", (TextPart("hi"),))
    assert read_message({"type": "human", "content": content}) == Message("user", (TextPart("hi"),))


def test_arguments_that_are_broken_stay_as_the_model_wrote_them() -> None:
    """A model's broken JSON is evidence, not a reason to lose the message."""
    call = {"id": "c1", "function": {"name": "lookup", "arguments": '{"a": '}}
    assert read_message({"role": "assistant", "tool_calls": [call]}) == Message(
        "assistant", (ToolCallPart("lookup", "c1", '{"a": '),)
    )


@pytest.mark.parametrize(
    "value",
    [
        {"type": "text", "content": "a part is no message"},
        {"role": "user", "content": {"text": "hi"}},
        {"role": "user", "content": [7]},
        {"role": "user", "parts": ["hi"]},
        {"role": "assistant", "tool_calls": ["c1"]},
        {"role": "assistant", "tool_calls": {"id": "c1"}},
    ],
)
def test_what_is_not_understood_is_no_message(value: Any) -> None:
    """A conversation with one of these has a hole, and counts as not captured."""
    assert read_message(value) is None
    assert read_messages([{"role": "user", "content": "hi"}, value]) is None


def test_images_pass_as_their_kind() -> None:
    """A part that is not text stays a part of its own."""
    found = read_message({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]})
    assert found == Message("user", (OtherPart({"type": "uri", "modality": "image", "uri": "https://x/y.png"}),))


def test_tool_schemas_have_one_name() -> None:
    """Anthropic and the Vercel AI SDK name the schema of a tool differently."""
    schema = {"type": "object"}
    expected = ({"type": "function", "function": {"name": "lookup", "parameters": schema}},)
    for tool in ({"name": "lookup", "input_schema": schema}, {"type": "function", "name": "lookup", "inputSchema": schema}):
        assert tools_of({names.GEN_AI_TOOL_DEFINITIONS: [tool]}) == expected


# --- flattened attributes -----------------------------------------------------------------------------------------------
def test_flattened_attributes_become_lists_and_tables() -> None:
    """Lists are in order of their numbers, not of their text; a name that is value and prefix at once is its inside."""
    flat = {f"m.{number}.role": f"r{number}" for number in (10, 2, 0)} | {"m.0.calls.0.id": "c", "m.2": "x", "other.0": 1}
    assert unflatten(flat, "m") == [{"role": "r0", "calls": [{"id": "c"}]}, {"role": "r2"}, {"role": "r10"}]
    assert unflatten(flat, "none") is None
    assert unflatten({"m" + ".0" * 50_000: 1}, "m") is None


# --- precedence ---------------------------------------------------------------------------------------------------------
def test_ours_before_the_conventions_before_vendors_before_the_rest() -> None:
    """A span that speaks several dialects is read in each; the earlier one decides, the later ones fill in."""
    found = row(
        {
            "user.id": "generic",
            "session.id": "generic-session",
            "langfuse.observation.type": "generation",
            "langfuse.user.id": "vendor",
            "langfuse.observation.model.name": "vendor-model",
            "langfuse.observation.output": "vendor answer",
            names.GEN_AI_RESPONSE_MODEL: "conventions-model",
            names.SUBJECT: "ours",
        }
    )
    assert (found.subject, found.conversation, found.is_model_call) == ("ours", "generic-session", True)
    assert found.attributes[names.GEN_AI_RESPONSE_MODEL] == "conventions-model"
    assert found.attributes[names.GEN_AI_OUTPUT_MESSAGES] == [{"role": "assistant", "content": "vendor answer"}]


def test_a_failed_call_is_no_call_in_any_dialect() -> None:
    """The span's status or Langfuse's level says so, where no `error.type` does."""
    generation = {"langfuse.observation.type": "generation"}
    assert row(generation).is_model_call
    assert not row(generation, failed=True).is_model_call
    assert not row({**generation, "langfuse.observation.level": "ERROR"}).is_model_call


@pytest.mark.parametrize("endless", ['"Infinity"', "Infinity"])
def test_what_langfuse_fills_in_was_not_sent(endless: str) -> None:
    """Its OpenAI integration writes penalties of 0 and an endless limit for an app that sent nothing of the kind."""
    filled = f'{{"temperature": 0.2, "max_tokens": {endless}, "frequency_penalty": 0, "presence_penalty": 0.5}}'
    found = row({"langfuse.observation.type": "generation", "langfuse.observation.model.parameters": filled})
    assert request_of(found.attributes) == {"temperature": 0.2, "presence_penalty": 0.5}


@pytest.mark.parametrize(
    "attributes",
    [
        {"openinference.span.kind": "CHAIN", "llm.model_name": "m", "output.value": "x"},
        {"langfuse.observation.type": "agent", "langfuse.observation.model.name": "m", "langfuse.observation.output": "x"},
        {"ai.operationId": "ai.generateText", "ai.model.id": "m", "ai.response.text": "x", "ai.usage.inputTokens": 3},
        {"mlflow.spanType": '"CHAIN"', "mlflow.llm.model": '"m"', "mlflow.spanOutputs": '"x"'},
        {names.GEN_AI_OPERATION_NAME: "invoke_agent", names.GEN_AI_REQUEST_MODEL: "m", names.GEN_AI_OUTPUT_MESSAGES: "[]"},
        {"traceloop.span.kind": "workflow", "model": "m", "gen_ai.prompt.0.content": "x"},
    ],
)
def test_spans_around_a_call_are_neither_calls_nor_unknown(attributes: dict[str, Any]) -> None:
    """Chains, agents and the outer functions of an SDK repeat what the call's own span says."""
    found = row(attributes)
    assert (found.is_model_call, found.unknown_dialect) == (False, None)


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"openinference.span.kind": "TOOL", "tool.name": "lookup", "input.value": '{"a": 1}', "output.value": "5"}, "span"),
        ({"traceloop.span.kind": "tool", "traceloop.entity.name": "lookup", "traceloop.entity.input": '{"a": 1}'}, "span"),
        ({"langfuse.observation.type": "tool", "langfuse.observation.input": '{"a": 1}'}, "lookup"),
        ({"mlflow.spanType": '"TOOL"', "mlflow.spanInputs": '{"a": 1}', "mlflow.spanOutputs": '"5"'}, "lookup"),
    ],
)
def test_tools_that_ran_are_known_in_every_dialect(attributes: dict[str, Any], name: str) -> None:
    """Each dialect has a kind of span for them."""
    found = row(attributes, name=name)
    assert (found.is_tool_run, found.is_model_call) == (True, False)
    assert found.attributes[names.GEN_AI_TOOL_NAME] == "lookup"


def test_content_that_openinference_hides_is_not_content() -> None:
    """Its switches replace a text by a word; a prompt with that word is not what the model was given."""
    hidden = {"openinference.span.kind": "LLM", "llm.input_messages.0.message.role": "user"}
    found = row({**hidden, "llm.input_messages.0.message.content": "__REDACTED__"})
    assert context_of(found.attributes) is None


# --- outcomes on spans --------------------------------------------------------------------------------------------------
def test_annotations_are_outcomes_of_their_span_trace_or_session() -> None:
    """Annotator, identifier, explanation and metadata come along; one without a name says nothing."""
    found = row(
        {
            "session.id": "s1",
            "annotations.0.annotation.name": "thumb",
            "annotations.0.annotation.score": 1.0,
            "annotations.0.annotation.label": "up",
            "annotations.0.annotation.annotator_kind": "HUMAN",
            "annotations.0.annotation.identifier": "ann",
            "annotations.0.annotation.explanation": "good",
            "annotations.0.annotation.metadata": '{"page": 3}',
            "annotations.1.annotation.score": 0.0,
            "trace.evaluations.0.evaluation.name": "toxic",
            "trace.evaluations.0.evaluation.label": "no",
            "trace.evaluations.0.evaluation.annotator_kind": "LLM",
            "session.annotations.0.annotation.name": "csat",
            "session.annotations.0.annotation.score": 4.0,
        }
    )
    thumb, toxic, csat = found.outcomes
    assert (thumb.name, thumb.value, thumb.source_kind, thumb.source_id) == ("thumb", 1.0, "human", "ann")
    assert (thumb.comment, thumb.metadata) == ("good", {"page": 3, "label": "up"})
    assert thumb.target == {"trace_id": "01" * 16, "span_id": "02" * 8}
    assert (toxic.value, toxic.source_kind, toxic.target) == ("no", "llm", {"trace_id": "01" * 16})
    assert (csat.value, csat.target) == (4.0, {"conversation_id": "s1"})


def test_an_evaluation_event_of_a_span_is_its_outcome() -> None:
    """The same event as a log record would be: about the span that carries it."""
    request = ExportTraceServiceRequest.FromString(record({}))
    event = request.resource_spans[0].scope_spans[0].spans[0].events.add(name=names.GEN_AI_EVALUATION_RESULT)
    event.time_unix_nano = 1_790_000_000 * 10**9
    event.attributes.add(key=names.GEN_AI_EVALUATION_NAME).value.string_value = "helpful"
    event.attributes.add(key=names.GEN_AI_EVALUATION_SCORE_VALUE).value.double_value = 0.5
    (found,) = read_spans(request.SerializeToString())
    (outcome,) = found.outcomes
    assert (outcome.name, outcome.value, outcome.target) == ("helpful", 0.5, {"trace_id": "01" * 16, "span_id": "02" * 8})


def test_a_reward_of_old_agent_lightning_is_an_outcome() -> None:
    """Before 0.3 a reward was one attribute of a span with another name; a span that only looks like one has none."""
    (outcome,) = row({"reward": 0.75}, name="agentlightning.reward").outcomes
    assert (outcome.name, outcome.value) == ("reward", 0.75)
    assert row({"reward": 0.75}, name="shop.reward").outcomes == ()
    assert row({"reward": float("nan")}, name="agentlightning.reward").outcomes == ()


# --- message events -----------------------------------------------------------------------------------------------------
def test_whole_prompts_in_one_attribute_are_read() -> None:
    """The oldest packages wrote `gen_ai.prompt` and `gen_ai.completion`, as JSON or as plain text."""
    found = row({"gen_ai.system": "openai", "gen_ai.prompt": "hi", "gen_ai.completion": '[{"content": "ho"}]'})
    assert found.is_model_call
    assert context_of(found.attributes) == (Message("user", (TextPart("hi"),)),)
    assert read_messages(found.attributes[names.GEN_AI_OUTPUT_MESSAGES]) == (Message("assistant", (TextPart("ho"),)),)


def test_what_the_span_says_counts_before_its_events() -> None:
    """Events only fill in."""
    said = [(names.GEN_AI_OPERATION_NAME, {}, None), ("gen_ai.user.message", {}, {"content": "event"})]
    spoken = {names.GEN_AI_INPUT_MESSAGES: [{"role": "user", "content": "span"}]}
    assert with_events(spoken, said) == spoken
    assert with_events({}, said) == {names.GEN_AI_INPUT_MESSAGES: [{"role": "user", "content": "event"}]}


def test_only_message_events_inside_a_trace_are_read() -> None:
    """An app's other logs, and events that name no span, say nothing about a call."""
    request = ExportLogsServiceRequest()
    logs = request.resource_logs.add().scope_logs.add().log_records
    inside = {"trace_id": b"\x01" * 16, "span_id": b"\x02" * 8}
    logs.add(event_name="gen_ai.user.message")
    logs.add(event_name="app.started", **inside)
    logs.add(event_name="gen_ai.user.message", **inside).body.string_value = "hi"
    (event,) = read_events(request.SerializeToString())
    assert event.content == ("gen_ai.user.message", {}, "hi")
    with pytest.raises(RecordError, match="3 bytes is not an ExportLogsServiceRequest"):
        list(read_events(b"\xff\xff\xff"))


# --- anything at all ----------------------------------------------------------------------------------------------------
_KEYS = st.sampled_from(
    [
        *("gen_ai.operation.name", "gen_ai.system", "gen_ai.prompt", "gen_ai.completion", "gen_ai.prompt.0.content"),
        *("gen_ai.completion.0.tool_calls.0.name", "llm.request.type", "llm.request.functions.0.name", "traceloop.span.kind"),
        *(
            "openinference.span.kind",
            "llm.input_messages.0.message.role",
            "llm.input_messages.0.message.contents.0",
            "llm.tools.0",
        ),
        *("llm.invocation_parameters", "output.value", "annotations.0.annotation.name", "annotations.0.annotation.score"),
        *("langfuse.observation.type", "langfuse.observation.input", "langfuse.observation.output", "langfuse.observation.level"),
        *(
            "langfuse.observation.usage_details",
            "ai.operationId",
            "ai.prompt.messages",
            "ai.prompt.tools",
            "ai.response.toolCalls",
        ),
        *("mlflow.spanType", "mlflow.spanInputs", "mlflow.spanOutputs", "mlflow.chat.tools", "mlflow.chat.tokenUsage"),
        *("agentlightning.reward.0.value", "agentlightning.link.0.key_match", "agentlightning.link", "reward", "session.id"),
        *("gen_ai.tool.definitions", "gen_ai.tool.name", "gen_ai.response.finish_reasons", "user.id", "error.type"),
    ]
)
_WORDS = st.sampled_from(
    [
        *("chat", "LLM", "TOOL", "generation", "tool", '"CHAT_MODEL"', "ai.streamText.doStream", "ai.toolCall", "ERROR", "NaN"),
        *("{}", "[]", '[{"role": 3}]', '{"messages": [{"content": 4}]}', '{"choices": [{"message": 1}]}'),
        *('[{"tool_calls": [{"function": 1}]}]', '{"temperature": "hot", "messages": 3}', '[{"kwargs": {}, "id": [4]}]'),
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | _WORDS | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "type", "0"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(attributes=st.dictionaries(_KEYS, _VALUES, max_size=8), name=st.sampled_from(["s", "agentlightning.reward"]))
def test_no_attributes_of_any_dialect_are_an_error(attributes: dict[str, Any], name: str) -> None:
    """Nothing that a client makes up stops a night."""
    found = row(attributes, name=name)
    context_of(found.attributes), tools_of(found.attributes)
    read_messages(found.attributes.get(names.GEN_AI_OUTPUT_MESSAGES))
