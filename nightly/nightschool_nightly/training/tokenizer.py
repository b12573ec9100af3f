"""The base model's tokenizer, for the texts that a night turns into tokens itself: general prompts, human answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

# A conversation whose answer is found again in what the template makes of it.
_ASKED, _ANSWERED = "What is seven times six?", "It-is-forty-two"


class PolicyTokenizer:
    """Texts to token ids as the base model was trained on them."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self._end_of_turn = self._find_end_of_turn()

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """A conversation up to where the answer begins, by the model's chat template.

        Some templates know no system message: then it opens the first message of the user. A model without a chat
        template gets the plain texts.
        """
        if self._tokenizer.chat_template is None:
            return tuple(self._tokenizer("\n\n".join(message["content"] for message in messages)).input_ids)
        try:
            return self._templated(messages)
        except TemplateError:
            return self._templated(_without_system(messages))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """An answer as the model would have given it. Without the end of turn it would learn never to stop."""
        return (*self._tokenizer(text, add_special_tokens=False).input_ids, self._end_of_turn)

    def _find_end_of_turn(self) -> int:
        """The token that the chat template puts behind an answer: `<end_of_turn>` for Gemma, `<|end|>` for Phi.

        It need not be the tokenizer's `eos_token_id`, which often ends a document and was never seen behind an answer.
        That one is taken where the template puts no special token there, or where there is no template.
        """
        end: int = self._tokenizer.eos_token_id
        if self._tokenizer.chat_template is None:
            return end
        chat = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}]
        try:
            text: str = self._tokenizer.apply_chat_template(chat, tokenize=False)
        except TemplateError:  # a template that knows no such conversation says nothing about it
            return end
        _, found, behind = text.rpartition(_ANSWERED)
        ids: list[int] = self._tokenizer(behind.lstrip(), add_special_tokens=False).input_ids if found else []
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return ids[0] if ids and ids[0] in special else end

    def _templated(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        return tuple(self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))


def _without_system(messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The same with system messages put before the first message of the user."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    first, *rest = (message for message in messages if message["role"] != "system")
    return [{**first, "content": "\n\n".join([*system, first["content"]])}, *rest]
