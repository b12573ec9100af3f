"""The base model's tokenizer, for the texts that a night turns into tokens itself: general prompts, human answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class PolicyTokenizer:
    """Texts to token ids as the base model was trained on them."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def prompt_ids(self, message: str) -> tuple[int, ...]:
        """The prompt of a chat with one user message, up to where the answer begins."""
        chat = [{"role": "user", "content": message}]
        return tuple(self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """An answer as the model would have given it. Without the end of turn it would learn never to stop."""
        return (*self._tokenizer(text, add_special_tokens=False).input_ids, self._tokenizer.eos_token_id)
