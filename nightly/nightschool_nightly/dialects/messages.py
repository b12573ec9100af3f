"""Messages and their typed parts, out of whatever shape a dialect writes them in.

The result follows the message JSON schema of the GenAI conventions. What is translated into it: chat messages as APIs
take them (`content` as text or list, `tool_calls`, `tool_call_id`), the roles and wrappers of LangChain, arguments
written as JSON text, and the part types of Anthropic, of OpenAI's responses and of the Vercel AI SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool.episode import Message, OtherPart, Part, TextPart, ToolCallPart, ToolResponsePart
from nightschool.sdk.endpoints import chat
from nightschool_nightly.dialects.values import parsed, structured, text_of

_ROLES = {
    "human": "user",
    "humanmessage": "user",
    "user": "user",
    "ai": "assistant",
    "aimessage": "assistant",
    "aimessagechunk": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "systemmessage": "system",
    "tool": "tool",
    "toolmessage": "tool",
    "function": "tool",
    "functionmessage": "tool",
}
_TEXT_TYPES = {"text", "input_text", "output_text"}
_CALL_TYPES = {"tool_call", "tool-call", "tool_use"}
_RESPONSE_TYPES = {"tool_call_response", "tool-result", "tool_result"}
_CALL_IDS = ("id", "toolCallId", "tool_call_id", "tool_use_id", "call_id")
_ARGUMENTS = ("arguments", "input", "args")
_RESPONSES = ("response", "result", "output", "content")
_CHAT_CONTENT = ("content", "tool_calls", "refusal", "reasoning_content", "reasoning")


def read_messages(value: Any) -> tuple[Message, ...] | None:
    """Messages as JSON text or structured; None when not captured, or when one of them is not understood."""
    value = structured(value)
    if not isinstance(value, list):
        return None
    messages = [read_message(item) for item in value]
    return None if None in messages else tuple(message for message in messages if message is not None)


def read_message(value: Any) -> Message | None:
    """One message with its parts; None when it is not one."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("kwargs"), dict) and isinstance(value.get("id"), list) and value["id"]:
        value = {"type": value["id"][-1], **value["kwargs"]}  # as LangChain serializes its own objects
    role = _role(value)
    if role is None:
        return None
    parts = _given_parts(role, value)
    if parts is None or not all(isinstance(part, dict) for part in parts):
        return None
    return Message(role, tuple(read_part(part) for part in parts), text_of(value.get("name")))


def read_part(part: Mapping[str, Any]) -> Part:
    """One typed part; a part of a type that is not known here is kept as it came."""
    kind = text_of(part.get("type"))
    if kind in _TEXT_TYPES:
        text = part.get("content", part.get("text"))
        return TextPart(text) if isinstance(text, str) else OtherPart(part)
    if kind in _CALL_TYPES:
        name = text_of(part.get("name")) or text_of(part.get("toolName"))
        return ToolCallPart(name, _call_id(part), parsed(_first(part, _ARGUMENTS))) if name else OtherPart(part)
    if kind in _RESPONSE_TYPES:
        return ToolResponsePart(_response(_first(part, _RESPONSES)), _call_id(part))
    return OtherPart(part)


def _role(value: Mapping[str, Any]) -> str | None:
    """The role under its usual name; LangChain writes it as the type of the message."""
    if role := text_of(value.get("role")):
        return _ROLES.get(role.lower(), role)
    return _ROLES.get(str(value.get("type")).lower())


def _given_parts(role: str, value: Mapping[str, Any]) -> list[Any] | None:
    """The parts of a message before they are read; None when it has no content of a known kind."""
    if isinstance(value.get("parts"), list):
        return list(value["parts"])
    if not any(name in value for name in _CHAT_CONTENT):
        return None
    content = value.get("content")
    if role == "tool" and not _are_responses(content):
        return [{"type": "tool_call_response", "response": content, "id": value.get("tool_call_id") or value.get("id")}]
    if content is not None and not isinstance(content, (str, list)):
        return None
    if isinstance(content, list) and not all(isinstance(part, (str, dict)) for part in content):
        return None
    given = {name: value[name] for name in _CHAT_CONTENT if name in value and name != "tool_calls"}
    if isinstance(content, list):
        given["content"] = [_api_part(part) for part in content]
    calls = value.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return None
    return [*chat.message({"role": role if role != "tool" else "user", **given})["parts"], *map(_tool_call, calls)]


def _api_part(part: Any) -> Any:
    """A text part as chat APIs write it; every other part as it is."""
    if isinstance(part, dict) and part.get("type") == "text" and "text" not in part:
        return {"type": "text", "text": part.get("content")}
    return part


def _are_responses(content: Any) -> bool:
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") in _RESPONSE_TYPES for part in content)


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as chat APIs nest it, under `function`, or flat."""
    function = call["function"] if isinstance(call.get("function"), dict) else call
    name = function.get("name") or function.get("toolName")
    return {"type": "tool_call", "id": _call_id(call), "name": name, "arguments": _first(function, _ARGUMENTS)}


def _call_id(part: Mapping[str, Any]) -> str | None:
    return text_of(_first(part, _CALL_IDS))


def _first(part: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((part[key] for key in keys if part.get(key) is not None), None)


def _response(value: Any) -> Any:
    """What a tool answered; the Vercel AI SDK wraps it in an object that says its type."""
    if isinstance(value, dict) and set(value) == {"type", "value"} and value["type"] in ("text", "json"):
        return value["value"]
    return value
