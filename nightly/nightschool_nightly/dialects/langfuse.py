"""Langfuse: observations whose input and output are JSON of whatever the app passed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool import semconv as names
from nightschool_nightly.dialects.dialect import Dialect
from nightschool_nightly.dialects.openai_json import read_chat_request, read_usage
from nightschool_nightly.dialects.span import RawSpan
from nightschool_nightly.dialects.values import called_with, first_text, present, structured

_PREFIX = "langfuse.observation."
_KIND = _PREFIX + "type"
# Langfuse's OpenAI integration writes these where the app sent nothing; no limit is infinity, as a number or a text.
_FILLED_IN = {"max_tokens": (float("inf"), "Infinity"), "frequency_penalty": (0,), "presence_penalty": (0,)}


def _read(span: RawSpan) -> dict[str, Any]:
    """What an observation says; only generations and tools are calls."""
    attributes = span.attributes
    found: dict[str, Any] = {}
    if user := first_text(attributes.get("langfuse.user.id"), attributes.get("user.id")):
        found[names.SUBJECT] = user
    if session := first_text(attributes.get("langfuse.session.id"), attributes.get("session.id")):
        found[names.GEN_AI_CONVERSATION_ID] = session
    if attributes.get(_PREFIX + "level") == "ERROR":
        found[names.ERROR_TYPE] = "ERROR"
    match attributes.get(_KIND):
        case "generation":
            return found | _generation(attributes)
        case "tool":
            return found | _tool_run(span)
        case _:
            return found


def _generation(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {names.GEN_AI_OPERATION_NAME: "chat"}
    parameters = structured(attributes.get(_PREFIX + "model.parameters"))
    if isinstance(parameters, dict):
        found |= read_chat_request({name: value for name, value in parameters.items() if value not in _FILLED_IN.get(name, ())})
    found |= read_usage(structured(attributes.get(_PREFIX + "usage_details")))
    if model := first_text(attributes.get(_PREFIX + "model.name")):
        found[names.GEN_AI_RESPONSE_MODEL] = model
    if reason := first_text(structured(attributes.get(_PREFIX + "metadata.finish_reason"))):
        found[names.GEN_AI_RESPONSE_FINISH_REASONS] = [reason]
    found |= _input(attributes.get(_PREFIX + "input"))
    if answer := _messages(attributes.get(_PREFIX + "output"), "assistant"):
        found[names.GEN_AI_OUTPUT_MESSAGES] = answer
    return found


def _input(text: Any) -> dict[str, Any]:
    """Messages, or an object with messages beside tools."""
    given = structured(text)
    if isinstance(given, dict) and isinstance(given.get("messages"), list):
        return read_chat_request({name: given[name] for name in ("messages", "tools") if given.get(name)})
    messages = _messages(text, "user")
    return {names.GEN_AI_INPUT_MESSAGES: messages} if messages else {}


def _messages(text: Any, role: str) -> list[Any] | None:
    """Messages out of a list of them, one of them, or bare text."""
    given = structured(text)
    if isinstance(given, list):
        return given
    if isinstance(given, dict):
        return [{"role": role, "content": None, **given}] if "content" in given or "tool_calls" in given else None
    return [{"role": role, "content": text}] if isinstance(text, str) and text else None


def _tool_run(span: RawSpan) -> dict[str, Any]:
    return present(
        {
            names.GEN_AI_OPERATION_NAME: "execute_tool",
            names.GEN_AI_TOOL_NAME: span.name,
            names.GEN_AI_TOOL_CALL_ARGUMENTS: called_with(span.attributes.get(_PREFIX + "input")),
            names.GEN_AI_TOOL_CALL_RESULT: span.attributes.get(_PREFIX + "output"),
        }
    )


LANGFUSE = Dialect(markers=frozenset({"langfuse"}), read=_read, kind=_KIND)
