"""Texts to token ids, with the tokenizer of the base model that comes with the project."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from nightschool.registry.base_model import PACKAGED, base_model_folder
from nightschool_nightly.training.tokenizer import PolicyTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PolicyTokenizer:
    return PolicyTokenizer(base_model_folder(PACKAGED))


def decode(ids: tuple[int, ...]) -> str:
    text: str = AutoTokenizer.from_pretrained(base_model_folder(PACKAGED)).decode(ids)
    return text


def test_an_answer_is_its_text_and_its_end(tokenizer: PolicyTokenizer) -> None:
    """What a human wrote, as the model would have sampled it: nothing before the text, the end of turn behind it."""
    assert decode(tokenizer.answer_ids("card-lost")) == "card-lost<|im_end|>"


def test_a_prompt_ends_where_the_answer_begins(tokenizer: PolicyTokenizer) -> None:
    """The message stands in the chat template, and the next token is the first of the answer."""
    text = decode(tokenizer.chat_ids([{"role": "user", "content": "Who was Isaac Newton?"}]))
    assert "<|im_start|>user\nWho was Isaac Newton?<|im_end|>" in text and text.endswith("<|im_start|>assistant\n")
