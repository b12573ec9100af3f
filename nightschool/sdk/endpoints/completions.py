"""OpenAI text completions (`/completions`: a prompt, no chat) as GenAI span attributes.

The prompt is a user message and the answer an assistant message, as the GenAI conventions have it. The input is left
out for a prompt given as token ids, which has no text, and for several prompts in one request, which the attributes
could not tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Choice:
    """One choice of a streamed completion, put together from its pieces."""

    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, text: Any) -> None:
        self.pieces.append(text or "")

    def to_json(self) -> dict[str, Any]:
        return {"text": "".join(self.pieces), "finish_reason": self.finish_reason}


class StreamedCompletion(chat.StreamedChoices):
    """A streamed completion as a whole one."""

    def __init__(self) -> None:
        super().__init__(_Choice, "text")
