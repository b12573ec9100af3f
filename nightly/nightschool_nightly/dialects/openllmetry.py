"""OpenLLMetry (Traceloop): messages as indexed attributes, and what its SDK adds to every span.

Versions from about 0.53 on write messages as the GenAI conventions do; of those only the association properties are
read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool import semconv as names
from nightschool_nightly.dialects.dialect import Dialect
from nightschool_nightly.dialects.span import RawSpan, unflatten
from nightschool_nightly.dialects.values import called_with, first_text, parsed, present, renamed, structured

_OPERATIONS = {"chat": "chat", "completion": "text_completion"}
_RENAMED = {
    "gen_ai.usage.prompt_tokens": names.GEN_AI_USAGE_INPUT_TOKENS,
    "gen_ai.usage.completion_tokens": names.GEN_AI_USAGE_OUTPUT_TOKENS,
    "llm.usage.prompt_tokens": names.GEN_AI_USAGE_INPUT_TOKENS,
    "llm.usage.completion_tokens": names.GEN_AI_USAGE_OUTPUT_TOKENS,
    "gen_ai.usage.cache_read_input_tokens": names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
    "llm.request.seed": names.GEN_AI_REQUEST_SEED,
    "llm.chat.stop_sequences": names.GEN_AI_REQUEST_STOP_SEQUENCES,
}
_KIND = "traceloop.span.kind"
_PROPERTIES = "traceloop.association.properties."
_PREFIXES = ("gen_ai.prompt.", "gen_ai.completion.", "llm.", "traceloop.")
_USERS = ("user_id", "userId", "user")
_SESSIONS = ("session_id", "sessionId", "conversation_id", "thread_id", "chat_id")


def _read(span: RawSpan) -> dict[str, Any]:
    """What the span says in Traceloop's names."""
    attributes = span.attributes
    if not any(name.startswith(_PREFIXES) for name in attributes):
        return {}
    found = renamed(attributes, _RENAMED)
    if operation := _OPERATIONS.get(str(attributes.get("llm.request.type"))):
        found[names.GEN_AI_OPERATION_NAME] = operation
    prompts, completions = unflatten(attributes, "gen_ai.prompt"), unflatten(attributes, "gen_ai.completion")
    if isinstance(prompts, list):
        found[names.GEN_AI_INPUT_MESSAGES] = [_message(prompt, "user") for prompt in prompts]
    if isinstance(completions, list):
        found[names.GEN_AI_OUTPUT_MESSAGES] = [_message(completion, "assistant") for completion in completions]
        reasons = [first_text(item.get("finish_reason")) for item in completions if isinstance(item, dict)]
        if any(reasons):
            found[names.GEN_AI_RESPONSE_FINISH_REASONS] = [reason for reason in reasons if reason]
    functions = unflatten(attributes, "llm.request.functions")
    if isinstance(functions, list):
        found[names.GEN_AI_TOOL_DEFINITIONS] = [_tool(function) for function in functions if isinstance(function, dict)]
    if user := first_text(*(attributes.get(_PROPERTIES + name) for name in _USERS)):
        found[names.SUBJECT] = user
    if session := first_text(*(attributes.get(_PROPERTIES + name) for name in _SESSIONS)):
        found[names.GEN_AI_CONVERSATION_ID] = session
    return found | _tool_run(attributes)


def _message(given: Any, role: str) -> Any:
    """One message; `content` is text, or a list of parts as JSON text."""
    if not isinstance(given, dict):
        return given
    content = given.get("content")
    parts = structured(content) if isinstance(content, str) and content.startswith("[{") else None
    typed = isinstance(parts, list) and all(isinstance(part, dict) and "type" in part for part in parts)
    return {"role": role, **given, "content": parts if typed else content}


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = structured(function.get("parameters"))
    kept = {name: function[name] for name in ("name", "description") if name in function}
    return {"type": "function", **kept, **({"parameters": parameters} if parameters is not None else {})}


def _tool_run(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A function that the app marked with `@tool`."""
    if attributes.get(_KIND) != "tool":
        return {}
    return present(
        {
            names.GEN_AI_OPERATION_NAME: "execute_tool",
            names.GEN_AI_TOOL_NAME: attributes.get("traceloop.entity.name"),
            names.GEN_AI_TOOL_CALL_ARGUMENTS: called_with(attributes.get("traceloop.entity.input")),
            names.GEN_AI_TOOL_CALL_RESULT: parsed(attributes.get("traceloop.entity.output")),
        }
    )


OPENLLMETRY = Dialect(markers=frozenset({"gen_ai", "llm", "traceloop"}), read=_read, kind=_KIND)
