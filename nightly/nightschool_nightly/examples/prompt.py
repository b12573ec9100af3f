"""The prompt of a call as token ids of the base model: as the server recorded them, or rendered from the messages."""

from __future__ import annotations

from typing import Any, Protocol

from jinja2 import TemplateError

from nightschool.episode import RecordedCall, TextPart
from nightschool_nightly.episodes.reasons import DropReason


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def encode(self, text: str, **options: Any) -> list[int]: ...


def has_foreign_tokens(call: RecordedCall, tokenizer_digest: str | None) -> bool:
    """Whether a call has recorded token ids that are of another tokenizer than the one with this digest."""
    return call.tokens is not None and call.tokens.tokenizer != tokenizer_digest


def prompt_ids_of(call: RecordedCall, tokenizer: ChatTokenizer, tokenizer_digest: str | None) -> tuple[int, ...] | DropReason:
    """The token ids that production's server saw, if they mean the same here; else those of the rendered messages."""
    if call.tokens is not None and not has_foreign_tokens(call, tokenizer_digest):
        return call.tokens.prompt_ids
    return _rendered(call, tokenizer) if call.is_chat else DropReason.NOT_CHAT


def _rendered(call: RecordedCall, tokenizer: ChatTokenizer) -> tuple[int, ...] | DropReason:
    """Token ids of the context, by the same chat template that serving uses; or why it has none."""
    if any(not isinstance(part, TextPart) for message in call.messages for part in message.parts):
        return DropReason.NOT_TEXT_PROMPT
    conversation = [{"role": message.role, "content": message.text} for message in call.messages]
    try:
        ids = tokenizer.apply_chat_template(
            conversation, tools=list(call.tools) or None, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError:
        return DropReason.NO_TEMPLATE
    return tuple(ids)
