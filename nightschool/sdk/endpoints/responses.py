"""OpenAI's Responses API (`/responses`) as GenAI span attributes, in the same form as a chat.

Items that the model produced one after another (reasoning, a text, tool calls) are one assistant message. A request
that continues something kept at the provider (`previous_response_id`, a conversation, a stored prompt) does not hold
everything the model was given. Its input is left out, because training on half a context teaches the wrong thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nightschool import semconv
from nightschool.sdk.endpoints import chat
from nightschool.sdk.snapshot import fields_of

KEPT_ELSEWHERE = ("previous_response_id", "conversation", "prompt")
"""Parameters that refer to content which is kept at the provider."""
REQUEST_FIELDS = frozenset({"model", "temperature", "top_p", "max_output_tokens", "stream", *KEPT_ELSEWHERE})
CONTENT_FIELDS = frozenset({"input", "instructions", "tools"})
_FINISH_REASONS: dict[str | None, str | None] = {"max_output_tokens": "length"}
_ITEM_FIELDS = ("type", "role", "content", "summary", "name", "arguments", "input", "call_id", "output", "id")
_ANSWER_FIELDS = ("id", "model", "output", "usage", "status", "incomplete_details")


# --- requests ---------------------------------------------------------------------------------------------------------
def request_attributes(params: Mapping[str, Any]) -> dict[str, chat.Attribute]:
    """The attributes of a request; the input only when all of it is in the request."""
    attributes = chat.sampling_attributes({**params, "max_tokens": params.get("max_output_tokens")})
    items = params.get("input")
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    if isinstance(items, list) and not _is_partial(params, items):
        if instructions := params.get("instructions"):
            attributes[semconv.GEN_AI_SYSTEM_INSTRUCTIONS] = chat.dump([{"type": "text", "content": instructions}])
        attributes[semconv.GEN_AI_INPUT_MESSAGES] = chat.dump(messages_of(items))
    if tools := params.get("tools"):
        attributes[semconv.GEN_AI_TOOL_DEFINITIONS] = chat.dump(
            list(tools)
        )  # not nested under "function", as the conventions have them
    return attributes | chat.other_parameters(params, REQUEST_FIELDS | CONTENT_FIELDS)


def _is_partial(params: Mapping[str, Any], items: Iterable[Any]) -> bool:
    """Whether the model was given more than is in the request."""
    kept = any(params.get(name) for name in KEPT_ELSEWHERE)
    return kept or any(chat.get(item, "type") == "item_reference" for item in items)


def messages_of(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Input or output items as messages; neighboring items that the model produced become one message."""
    messages: list[dict[str, Any]] = []
    is_model_turn = False
    for item in items:
        role, parts = _role_and_parts(item)
        if role == "assistant" and is_model_turn:
            messages[-1]["parts"] += parts
        else:
            messages.append({"role": role, "parts": parts})
        is_model_turn = role == "assistant"
    return messages


def _role_and_parts(item: Any) -> tuple[str, list[dict[str, Any]]]:
    match chat.get(item, "type"):
        case "function_call":
            return "assistant", [_tool_call(item, chat.parsed(chat.get(item, "arguments")))]
        case "custom_tool_call":
            return "assistant", [_tool_call(item, chat.get(item, "input"))]
        case "function_call_output" | "custom_tool_call_output":
            return "tool", [{"type": "tool_call_response", "response": chat.get(item, "output"), "id": chat.get(item, "call_id")}]
        case "reasoning":
            texts = [chat.get(text, "text") for name in ("content", "summary") for text in chat.get(item, name) or ()]
            return "assistant", [{"type": "reasoning", "content": text} for text in texts if text]
        case "message" | None:
            content = chat.get(item, "content")
            pieces = [content] if isinstance(content, str) else content or ()
            return str(chat.get(item, "role") or "assistant"), [_content_part(piece) for piece in pieces]
        case _:
            return "assistant", [dict(item) if isinstance(item, Mapping) else {"type": "other", "content": str(item)}]


def _tool_call(item: Any, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": chat.get(item, "call_id"), "name": chat.get(item, "name"), "arguments": arguments}


def _content_part(piece: Any) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "content": piece}
    match chat.get(piece, "type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "content": chat.get(piece, "text")}
        case "refusal":
            return {"type": "text", "content": chat.get(piece, "refusal")}
        case "input_image" if chat.get(piece, "image_url"):
            return chat.image_part(chat.get(piece, "image_url"))
        case "input_image" | "input_file" as kind if chat.get(piece, "file_id"):
            modality = "image" if kind == "input_image" else "document"
            return {"type": "file", "modality": modality, "file_id": chat.get(piece, "file_id")}
        case kind:
            return dict(piece) if isinstance(piece, Mapping) else {"type": str(kind), "content": str(piece)}


# --- answers ----------------------------------------------------------------------------------------------------------
def picked(response: Any, *, content: bool) -> dict[str, Any]:
    """The parts of a response that become attributes, as plain data."""
    fields = fields_of(response, _ANSWER_FIELDS)
    items = [_picked_item(item) if content else {"type": chat.get(item, "type")} for item in fields.get("output") or ()]
    usage = fields_of(fields.get("usage"), ("input_tokens", "output_tokens", "input_tokens_details", "output_tokens_details"))
    cached = fields_of(usage.get("input_tokens_details"), ("cached_tokens",)).get("cached_tokens")
    reasoning = fields_of(usage.get("output_tokens_details"), ("reasoning_tokens",)).get("reasoning_tokens")
    return {
        "id": fields.get("id"),
        "model": fields.get("model"),
        "status": fields.get("status"),
        "reason": fields_of(fields.get("incomplete_details"), ("reason",)).get("reason"),
        "output": items,
        "has_content": content,
        "usage": [usage.get("input_tokens"), usage.get("output_tokens"), cached, reasoning],
    }


def _picked_item(item: Any) -> dict[str, Any]:
    fields = fields_of(item, _ITEM_FIELDS)
    taken = {name: value for name in _ITEM_FIELDS if (value := fields.get(name)) is not None}
    for name in ("content", "summary"):
        if isinstance(pieces := taken.get(name), list):
            taken[name] = [dict(fields_of(piece, ("type", "text", "refusal"))) for piece in pieces]
    return taken


def response_attributes(response: Mapping[str, Any]) -> dict[str, chat.Attribute]:
    """The attributes of what `picked` returned; what it does not hold is absent."""
    output = response["output"]
    input_tokens, output_tokens, cached, reasoning = response["usage"]
    answers = messages_of(output) if response["has_content"] and output else None
    reason = _finish_reason(response)
    attributes: dict[str, Any] = {
        semconv.GEN_AI_RESPONSE_ID: response["id"],
        semconv.GEN_AI_RESPONSE_MODEL: response["model"],
        semconv.GEN_AI_RESPONSE_FINISH_REASONS: [reason] if reason else None,
        semconv.GEN_AI_OUTPUT_MESSAGES: chat.dump(answers) if answers else None,
        semconv.GEN_AI_USAGE_INPUT_TOKENS: input_tokens,
        semconv.GEN_AI_USAGE_OUTPUT_TOKENS: output_tokens,
        semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: cached,
        semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: reasoning,
    }
    return chat.compact(attributes)


def _finish_reason(response: Mapping[str, Any]) -> str | None:
    """Why the model stopped, by the names that chats use; None while it has not."""
    match response["status"]:
        case "completed":
            is_call = any(item.get("type") in ("function_call", "custom_tool_call") for item in response["output"])
            return "tool_calls" if is_call else "stop"
        case "incomplete":
            return _FINISH_REASONS.get(response["reason"], response["reason"])
        case "failed":
            return "error"
        case _:
            return None


class StreamedResponse:
    """Puts the events of a streamed response together; the last event, if it comes, holds the whole response."""

    def __init__(self) -> None:
        self.response_id: str | None = None
        self._newest: Any = None
        self._is_whole = False
        self._texts: dict[int, list[str]] = {}

    def add(self, event: Any) -> None:
        """Take one event, in order."""
        fields = fields_of(event, ("type", "response", "delta", "output_index"))
        if (response := fields.get("response")) is not None:
            self._newest = response
            self.response_id = self.response_id or chat.get(response, "id")
            self._is_whole = chat.get(response, "status") in ("completed", "incomplete", "failed")
        elif fields.get("type") in ("response.output_text.delta", "response.refusal.delta"):
            self._texts.setdefault(fields.get("output_index") or 0, []).append(fields.get("delta") or "")

    def response(self) -> Any:
        """The whole response, or else the texts that have come so far."""
        if self._is_whole:
            return self._newest
        texts = [{"role": "assistant", "content": "".join(pieces)} for _, pieces in sorted(self._texts.items())]
        fields = fields_of(self._newest, _ANSWER_FIELDS)
        return {"id": self.response_id, "model": fields.get("model"), "output": texts, "status": None}
