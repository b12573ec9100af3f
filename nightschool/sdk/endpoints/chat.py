"""OpenAI chat requests and answers as GenAI span attributes.

Messages follow the message JSON schema of the GenAI conventions: a role and a list of typed parts. Parts of a kind that
is not known here are kept as they came. A request or an answer may hold mappings or objects of the `openai` client.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nightschool import semconv
from nightschool.sdk.snapshot import fields_of

Attribute = str | bool | int | float | Sequence[str]

_REQUEST: dict[str, tuple[str, Callable[[Any], int | float]]] = {
    "temperature": (semconv.GEN_AI_REQUEST_TEMPERATURE, float),
    "top_p": (semconv.GEN_AI_REQUEST_TOP_P, float),
    "top_k": (semconv.GEN_AI_REQUEST_TOP_K, int),
    "frequency_penalty": (semconv.GEN_AI_REQUEST_FREQUENCY_PENALTY, float),
    "presence_penalty": (semconv.GEN_AI_REQUEST_PRESENCE_PENALTY, float),
    "max_tokens": (semconv.GEN_AI_REQUEST_MAX_TOKENS, int),
    "max_completion_tokens": (semconv.GEN_AI_REQUEST_MAX_TOKENS, int),
    "seed": (semconv.GEN_AI_REQUEST_SEED, int),
    "n": (semconv.GEN_AI_REQUEST_CHOICE_COUNT, int),
}

REQUEST_FIELDS = frozenset({"model", "stop", "stream", *_REQUEST})
"""The parameters of a request that become attributes, beside its content."""
CONTENT_FIELDS = frozenset({"messages", "tools", *semconv.SAMPLING_PARAMETERS})
SET = "(set)"
"""Stands for the value of a parameter that is recorded by its name alone."""
_MESSAGE_FIELDS = frozenset(
    {"role", "content", "refusal", "reasoning_content", "reasoning", "tool_calls", "name", "tool_call_id"}
)
_USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details")
_TEXT_FIELDS = ("content", "refusal", "reasoning_content", "reasoning")

_READABLE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)
_ESCAPED = json.JSONEncoder(separators=(",", ":"), default=str)


def get(holder: Any, name: str) -> Any:
    """`name` of a mapping or an object; None when absent."""
    if type(holder) is dict:  # nearly always, and the check for a Mapping costs more than all the rest
        return holder.get(name)
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def dump(data: Any) -> str:
    """JSON text for an attribute: readable, or in ASCII where it has a lone surrogate, which protobuf cannot carry."""
    text = _READABLE.encode(data)
    try:
        text.encode()
    except UnicodeEncodeError:
        return _ESCAPED.encode(data)
    return text


def compact(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """`attributes` without those that are None."""
    return {name: value for name, value in attributes.items() if value is not None}


# --- requests ---------------------------------------------------------------------------------------------------------
def request_attributes(params: Mapping[str, Any]) -> dict[str, Attribute]:
    """The attributes of a chat request; what was not sent is absent."""
    attributes = sampling_attributes(params)
    if "messages" in params:
        attributes[semconv.GEN_AI_INPUT_MESSAGES] = dump([message(one) for one in params["messages"] or ()])
    if tools := params.get("tools"):
        attributes[semconv.GEN_AI_TOOL_DEFINITIONS] = dump([tool_definition(tool) for tool in tools])
    return attributes | other_parameters(params, REQUEST_FIELDS | {"messages", "tools"})


def other_parameters(params: Mapping[str, Any], known: frozenset[str]) -> dict[str, Attribute]:
    """What a request sets beside the `known` parameters, as one attribute; nothing when it sets nothing else."""
    others = {
        name: value if name in semconv.SAMPLING_PARAMETERS else None
        for name, value in params.items()
        if value is not None and name not in known and name not in semconv.NEUTRAL_PARAMETERS
    }
    return {semconv.REQUEST_PARAMETERS: dump(others)} if others else {}


def sampling_attributes(params: Mapping[str, Any]) -> dict[str, Attribute]:
    """The model and the sampling parameters, which most endpoints share."""
    attributes: dict[str, Attribute] = {semconv.GEN_AI_REQUEST_MODEL: str(params.get("model", ""))}
    for name, (attribute, kind) in _REQUEST.items():
        value = params.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            attributes[attribute] = kind(value)
    stop = params.get("stop")
    if stop:
        attributes[semconv.GEN_AI_REQUEST_STOP_SEQUENCES] = [stop] if isinstance(stop, str) else [str(text) for text in stop]
    if params.get("stream"):
        attributes[semconv.GEN_AI_REQUEST_STREAM] = True
    return attributes


def message(given: Any) -> dict[str, Any]:
    """One chat message in the GenAI schema."""
    role = get(given, "role")
    if role in ("tool", "function"):
        parts = [_tool_response(given)]
    else:
        parts = _content_parts(get(given, "content"))
        if reasoning := get(given, "reasoning_content") or get(given, "reasoning"):
            parts.insert(0, {"type": "reasoning", "content": reasoning})
        if refusal := get(given, "refusal"):
            parts.append({"type": "text", "content": refusal})
        parts += [_tool_call(call) for call in get(given, "tool_calls") or ()]
    name = get(given, "name")
    return {"role": role, "parts": parts, **({"name": name} if name else {})}


def tool_definition(tool: Any) -> Any:
    """A tool with the fields of its function beside its type, as the conventions have it."""
    function = get(tool, "function")
    return {"type": "function", **function} if isinstance(function, Mapping) else tool


def _tool_response(given: Any) -> dict[str, Any]:
    part = {"type": "tool_call_response", "response": get(given, "content")}
    call_id = get(given, "tool_call_id")
    return {**part, "id": call_id} if call_id else part


def _tool_call(call: Any) -> dict[str, Any]:
    if custom := get(call, "custom"):  # a tool that takes a text in place of JSON
        return {"type": "tool_call", "id": get(call, "id"), "name": get(custom, "name"), "arguments": get(custom, "input")}
    function = get(call, "function")
    arguments = parsed(get(function, "arguments"))
    return {"type": "tool_call", "id": get(call, "id"), "name": get(function, "name"), "arguments": arguments}


def parsed(arguments: Any) -> Any:
    """A tool's arguments out of their JSON; where the model wrote broken JSON, the text as it is."""
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            return json.loads(arguments)
    return arguments


def _content_parts(content: Any) -> list[dict[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    if not isinstance(content, Iterable) or isinstance(content, Mapping):
        return [{"type": "text", "content": str(content)}]
    return [_content_part(part) for part in content]


def _content_part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "content": part}
    kind = get(part, "type")
    if kind in ("text", "refusal"):
        return {"type": "text", "content": get(part, kind)}
    if kind == "image_url":
        return image_part(get(get(part, "image_url"), "url"))
    if kind == "input_audio":
        audio = get(part, "input_audio")
        mime = {"mime_type": f"audio/{get(audio, 'format')}"} if get(audio, "format") else {}
        return {"type": "blob", "modality": "audio", "content": get(audio, "data"), **mime}
    if kind == "file" and (file_id := get(get(part, "file"), "file_id")):
        return {"type": "file", "modality": "document", "file_id": file_id}
    return dict(part) if isinstance(part, Mapping) else {"type": str(kind), "content": str(part)}


def image_part(url: Any) -> dict[str, Any]:
    """An image by its URL, or the image itself when the URL is a base64 `data:` URL."""
    header, comma, data = str(url).partition(",")
    if comma and header.startswith("data:") and header.endswith(";base64"):
        return {"type": "blob", "modality": "image", "mime_type": header[5:-7], "content": data}
    return {"type": "uri", "modality": "image", "uri": str(url)}


# --- answers ----------------------------------------------------------------------------------------------------------
def picked(response: Any, *, content: bool) -> dict[str, Any]:
    """The parts of a chat completion that become attributes, as plain data; cheap, because the app waits."""
    fields = fields_of(response, ("id", "model", "choices", "usage"))
    choices = []
    for choice in fields.get("choices") or ():
        given = fields_of(choice, ("finish_reason", "message"))
        taken = {"finish_reason": given.get("finish_reason")}
        if content and (answer := given.get("message")) is not None:
            taken["message"] = _picked_message(fields_of(answer, _MESSAGE_FIELDS))
        choices.append(taken)
    usage = fields.get("usage")
    taken_usage = None if usage is None else _picked_usage(fields_of(usage, _USAGE_FIELDS))
    return {"id": fields.get("id"), "model": fields.get("model"), "choices": choices, "usage": taken_usage}


def _picked_message(fields: Mapping[str, Any]) -> dict[str, Any]:
    taken = {name: value for name, value in fields.items() if value is not None and name in _MESSAGE_FIELDS}
    if calls := taken.get("tool_calls"):
        taken["tool_calls"] = [_picked_call(call) for call in calls]
    return taken


def _picked_call(call: Any) -> dict[str, Any]:
    fields = fields_of(call, ("id", "function", "custom"))
    taken = {"id": fields.get("id")}
    for kind, names in (("function", ("name", "arguments")), ("custom", ("name", "input"))):
        if (inner := fields.get(kind)) is not None:
            held = fields_of(inner, names)
            taken[kind] = {name: held.get(name) for name in names}
    return taken


def _picked_usage(fields: Mapping[str, Any]) -> dict[str, Any]:
    taken: dict[str, Any] = {
        "prompt_tokens": fields.get("prompt_tokens"),
        "completion_tokens": fields.get("completion_tokens"),
    }
    if (detail := fields.get("prompt_tokens_details")) is not None:
        taken["prompt_tokens_details"] = {"cached_tokens": fields_of(detail, ("cached_tokens",)).get("cached_tokens")}
    if (detail := fields.get("completion_tokens_details")) is not None:
        count = fields_of(detail, ("reasoning_tokens",)).get("reasoning_tokens")
        taken["completion_tokens_details"] = {"reasoning_tokens": count}
    return taken


def response_attributes(response: Any) -> dict[str, Attribute]:
    """The attributes of a chat completion; what it does not hold is absent."""
    choices = list(get(response, "choices") or ())
    messages = [one for choice in choices if (one := get(choice, "message")) is not None]
    finish_reasons = [str(reason) for choice in choices if (reason := get(choice, "finish_reason"))]
    usage = get(response, "usage")
    attributes: dict[str, Any] = {
        semconv.GEN_AI_RESPONSE_ID: get(response, "id"),
        semconv.GEN_AI_RESPONSE_MODEL: get(response, "model"),
        semconv.GEN_AI_RESPONSE_FINISH_REASONS: finish_reasons or None,
        semconv.GEN_AI_OUTPUT_MESSAGES: dump([message(one) for one in messages]) if messages else None,
        semconv.GEN_AI_USAGE_INPUT_TOKENS: get(usage, "prompt_tokens"),
        semconv.GEN_AI_USAGE_OUTPUT_TOKENS: get(usage, "completion_tokens"),
        semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: get(get(usage, "prompt_tokens_details"), "cached_tokens"),
        semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: get(get(usage, "completion_tokens_details"), "reasoning_tokens"),
    }
    return compact(attributes)


@dataclass(slots=True)
class _Choice:
    """One choice of a streamed answer, put together from its pieces."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    """The pieces of content, refusal and reasoning."""
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish_reason: str | None = None

    def add(self, delta: Any) -> None:
        fields = fields_of(delta, _MESSAGE_FIELDS)
        for name in _TEXT_FIELDS:
            if piece := fields.get(name):
                self.texts.setdefault(name, []).append(piece)
        for call in fields.get("tool_calls") or ():
            whole = self.tool_calls.setdefault(get(call, "index") or 0, {"id": None, "name": None, "pieces": []})
            function = get(call, "function")
            whole["id"] = whole["id"] or get(call, "id")
            whole["name"] = whole["name"] or get(function, "name")
            whole["pieces"].append(get(function, "arguments") or "")

    def to_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"role": "assistant", **{name: "".join(pieces) for name, pieces in self.texts.items()}}
        answer["tool_calls"] = [
            {"id": call["id"], "function": {"name": call["name"], "arguments": "".join(call["pieces"])}}
            for _, call in sorted(self.tool_calls.items())
        ]
        return {"message": answer, "finish_reason": self.finish_reason}


class StreamedChoice(Protocol):
    """One choice of a streamed answer."""

    finish_reason: str | None

    def add(self, piece: Any) -> None: ...
    def to_json(self) -> dict[str, Any]: ...


class StreamedChoices:
    """Puts the chunks of a streamed answer together; each chunk has a piece of a choice in the field `piece`."""

    def __init__(self, new_choice: Callable[[], StreamedChoice], piece: str) -> None:
        self.response_id: str | None = None
        self._model: str | None = None
        self._usage: Any = None
        self._choices: dict[int, StreamedChoice] = {}
        self._new_choice, self._piece = new_choice, piece

    def add(self, chunk: Any) -> None:
        """Take one chunk, in order."""
        fields = fields_of(chunk, ("id", "model", "usage", "choices"))
        self.response_id = self.response_id or fields.get("id")
        self._model = self._model or fields.get("model")
        self._usage = fields.get("usage") or self._usage
        for given in fields.get("choices") or ():
            held = fields_of(given, ("index", "finish_reason", self._piece))
            choice = self._choices.setdefault(held.get("index") or 0, self._new_choice())
            choice.finish_reason = held.get("finish_reason") or choice.finish_reason
            choice.add(held.get(self._piece))

    def response(self) -> dict[str, Any]:
        """What has come so far; a choice that was cut off has no finish reason."""
        choices = [choice.to_json() for _, choice in sorted(self._choices.items())]
        return {"id": self.response_id, "model": self._model, "usage": self._usage, "choices": choices}


class StreamedChat(StreamedChoices):
    """A streamed chat as a chat completion."""

    def __init__(self) -> None:
        super().__init__(_Choice, "delta")
