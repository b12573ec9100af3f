"""Messages and their typed parts, out of whatever shape a dialect writes them in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool.episode import Message, OtherPart, Part, TextPart, ToolCallPart, ToolResponsePart
from nightschool_nightly.dialects.values import structured, text_of


def read_messages(value: Any) -> tuple[Message, ...] | None:
    """Messages of `gen_ai.input.messages` or `gen_ai.output.messages`, as JSON text or structured; None when not captured."""
    value = structured(value)
    if not isinstance(value, list):
        return None
    messages = [read_message(item) for item in value]
    return None if None in messages else tuple(message for message in messages if message is not None)


def read_message(value: Any) -> Message | None:
    """One message with its parts; None when it is not one."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str) or not isinstance(value.get("parts"), list):
        return None
    parts = tuple(read_part(part) for part in value["parts"] if isinstance(part, dict))
    return Message(value["role"], parts, text_of(value.get("name")))


def read_part(part: Mapping[str, Any]) -> Part:
    """One typed part; kinds we do not know pass through whole."""
    match part.get("type"):
        case "text" if isinstance(part.get("content"), str):
            return TextPart(part["content"])
        case "tool_call" if isinstance(part.get("name"), str):
            return ToolCallPart(part["name"], text_of(part.get("id")), part.get("arguments"))
        case "tool_call_response":
            return ToolResponsePart(part.get("response", part.get("result")), text_of(part.get("id")))
        case _:
            return OtherPart(part)
