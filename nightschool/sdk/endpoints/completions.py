"""OpenAI text completions (`/completions`: a prompt, no chat) as GenAI span attributes.

The prompt is a user message and the answer an assistant message, as the GenAI conventions have it. The input is left
out for a prompt given as token ids, which has no text, and for several prompts in one request, which the attributes
could not tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool import semconv
from nightschool.sdk.endpoints import chat
from nightschool.sdk.snapshot import fields_of

REQUEST_FIELDS = chat.REQUEST_FIELDS
CONTENT_FIELDS = frozenset({"prompt", *semconv.SAMPLING_PARAMETERS})


def request_attributes(params: Mapping[str, Any]) -> dict[str, chat.Attribute]:
    """The attributes of a completion request."""
    attributes = chat.sampling_attributes(params)
    prompt = params.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str):
        attributes[semconv.GEN_AI_INPUT_MESSAGES] = chat.dump([chat.message({"role": "user", "content": prompt})])
    return attributes | chat.other_parameters(params, REQUEST_FIELDS | {"prompt"})


def picked(response: Any, *, content: bool) -> dict[str, Any]:
    """The completion in the form of a chat completion, as plain data."""
    choices = []
    for choice in fields_of(response, ("choices",)).get("choices") or ():
        given = fields_of(choice, ("text", "finish_reason"))
        message = {"role": "assistant", "content": given.get("text")}
        choices.append({"finish_reason": given.get("finish_reason"), "message": message})
    fields = fields_of(response, ("id", "model", "usage"))
    whole = {"id": fields.get("id"), "model": fields.get("model"), "choices": choices, "usage": fields.get("usage")}
    return chat.picked(whole, content=content)


response_attributes = chat.response_attributes


class StreamedCompletion:
    """Puts the chunks of a streamed completion together into one."""

    def __init__(self) -> None:
        self.response_id: str | None = None
        self._model: str | None = None
        self._usage: Any = None
        self._texts: dict[int, list[str]] = {}
        self._reasons: dict[int, str] = {}

    def add(self, chunk: Any) -> None:
        """Take one chunk, in order."""
        fields = fields_of(chunk, ("id", "model", "usage", "choices"))
        self.response_id = self.response_id or fields.get("id")
        self._model = self._model or fields.get("model")
        self._usage = fields.get("usage") or self._usage
        for given in fields.get("choices") or ():
            held = fields_of(given, ("index", "text", "finish_reason"))
            index = held.get("index") or 0
            self._texts.setdefault(index, []).append(held.get("text") or "")
            if reason := held.get("finish_reason"):
                self._reasons[index] = reason

    def response(self) -> dict[str, Any]:
        """What has come so far; a choice that was cut off has no finish reason."""
        choices = [
            {"text": "".join(pieces), "finish_reason": self._reasons.get(index)} for index, pieces in sorted(self._texts.items())
        ]
        return {"id": self.response_id, "model": self._model, "usage": self._usage, "choices": choices}
