"""What a model call or a tool run was, out of attributes that already have their GenAI names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool import semconv as names
from nightschool.episode import Message, ToolRun
from nightschool_nightly.dialects.messages import read_messages, read_part
from nightschool_nightly.dialects.values import first_text, is_whole, parsed, structured

# The names of vLLM's and OpenAI's request bodies, but for the stop texts, which have several there.
_REQUEST = {
    names.GEN_AI_REQUEST_TEMPERATURE: "temperature",
    names.GEN_AI_REQUEST_TOP_P: "top_p",
    names.GEN_AI_REQUEST_TOP_K: "top_k",
    names.GEN_AI_REQUEST_FREQUENCY_PENALTY: "frequency_penalty",
    names.GEN_AI_REQUEST_PRESENCE_PENALTY: "presence_penalty",
    names.GEN_AI_REQUEST_MAX_TOKENS: "max_tokens",
    names.GEN_AI_REQUEST_SEED: "seed",
    names.GEN_AI_REQUEST_STOP_SEQUENCES: "stop_sequences",
}
_USAGE = {
    names.GEN_AI_USAGE_INPUT_TOKENS: "input_tokens",
    names.GEN_AI_USAGE_OUTPUT_TOKENS: "output_tokens",
    names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: "cache_read_input_tokens",
    names.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: "reasoning_output_tokens",
}
_SCHEMAS = ("parameters", "inputSchema", "input_schema")
_FINISH_REASONS = {"tool_call": "tool_calls", "tool-calls": "tool_calls", "content-filter": "content_filter"}


def context_of(attributes: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """What the model was given, system instructions first; None when content is missing or not all understood."""
    messages = read_messages(attributes.get(names.GEN_AI_INPUT_MESSAGES))
    if not messages:
        return None
    if (system := attributes.get(names.GEN_AI_SYSTEM_INSTRUCTIONS)) is None:
        return messages
    parts = structured(system)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return None
    return (Message("system", tuple(read_part(part) for part in parts)), *messages) if parts else messages


def request_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as they were sent, whatever a client sent; what was not sent is absent.

    Whether a sampler accepts them, and a night can sample as they say, is for `examples.sampling` to decide.
    """
    others = structured(attributes.get(names.REQUEST_PARAMETERS))
    if not isinstance(others, dict):
        others = {} if names.REQUEST_PARAMETERS not in attributes else {names.REQUEST_PARAMETERS: None}
    named = {short: attributes[name] for name, short in _REQUEST.items() if attributes.get(name) is not None}
    return {**others, **named}


def finish_reason_of(attributes: Mapping[str, Any]) -> str | None:
    """Why the first answer ended, as chat APIs spell it: dialects have several spellings of `tool_calls`."""
    reasons = attributes.get(names.GEN_AI_RESPONSE_FINISH_REASONS)
    if not isinstance(reasons, list) or not reasons:
        return None
    reason = str(reasons[0])
    return _FINISH_REASONS.get(reason, reason)


def model_of(attributes: Mapping[str, Any]) -> str | None:
    """The model that answered, else the one that was asked for."""
    return first_text(attributes.get(names.GEN_AI_RESPONSE_MODEL), attributes.get(names.GEN_AI_REQUEST_MODEL))


def usage_of(attributes: Mapping[str, Any]) -> dict[str, int]:
    """Token counts as the server gave them; what it did not give is absent."""
    return {short: attributes[name] for name, short in _USAGE.items() if is_whole(attributes.get(name))}


def tool_run_of(span_id: str, attributes: Mapping[str, Any]) -> ToolRun | None:
    """A tool that ran; None when its span does not name the tool."""
    name = first_text(attributes.get(names.GEN_AI_TOOL_NAME))
    if name is None:
        return None
    return ToolRun(
        span_id=span_id,
        name=name,
        id=first_text(attributes.get(names.GEN_AI_TOOL_CALL_ID)),
        arguments=parsed(attributes.get(names.GEN_AI_TOOL_CALL_ARGUMENTS)),
        result=_result(attributes.get(names.GEN_AI_TOOL_CALL_RESULT)),
        failed=names.ERROR_TYPE in attributes,
    )


def _result(value: Any) -> Any:
    """What a tool answered; text that is itself a JSON string was encoded twice."""
    return parsed(value) if isinstance(value, str) and value.startswith('"') else value


def tools_of(attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Tool definitions; empty when there are none or they were not captured."""
    value = structured(attributes.get(names.GEN_AI_TOOL_DEFINITIONS))
    return tuple(_chat_tool(item) for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def _chat_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool as chat templates expect it, under "function"; the GenAI conventions define it flat."""
    if tool.get("type", "function") != "function" or "function" in tool:
        return tool
    function = {name: value for name, value in tool.items() if name != "type" and name not in _SCHEMAS}
    schema = next((tool[name] for name in _SCHEMAS if name in tool), None)
    return {"type": "function", "function": function if schema is None else {**function, "parameters": schema}}
