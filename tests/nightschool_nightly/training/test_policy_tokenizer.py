"""Texts to token ids, with the tokenizer of the base model that comes with the project."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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


CHAT = "{% for m in messages %}"
TURNS = "{% endfor %}{% if add_generation_prompt %}"
TEMPLATES = {
    # As Gemma, Phi-3, Phi-4, Llama 3, ChatML and Mistral have it; <eos> is none of the first four's end of a turn.
    "gemma": ("<end>", CHAT + "<start>{{ m.role }}\n{{ m.content | trim }}<end>\n" + TURNS + "<start>model\n{% endif %}"),
    "phi": ("<end>", CHAT + "<start>{{ m.role }}{{ m.content }}<end>" + TURNS + "<start>assistant{% else %}<eos>{% endif %}"),
    "llama": ("<end>", "<start>" + CHAT + "{{ m.role }}\n\n{{ m.content }}<end>" + TURNS + "assistant{% endif %}"),
    "added": ("<plain>", CHAT + "{{ m.role }} {{ m.content }}<plain>\n" + TURNS + "{% endif %}"),
    "mistral": (
        "<eos>",
        CHAT + "{% if m.role == 'user' %}<start>{{ m.content }}{% else %} {{ m.content }}<eos>{% endif %}{% endfor %}",
    ),
    "no end": ("<eos>", CHAT + "{{ m.role }}: {{ m.content }}\n" + TURNS + "assistant:{% endif %}"),
    "next turn": ("<eos>", CHAT + "{{ m.role }} {{ m.content }} user " + TURNS + "{% endif %}"),
    "refuses": ("<eos>", "{{ raise_exception('only system messages') }}"),
    "none": ("<eos>", None),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_ends_as_the_chat_template_ends_a_turn(name: str, tmp_path: Path) -> None:
    """The token behind an answer is found by rendering one; only without such a token is it `eos_token_id`."""
    expected, template = TEMPLATES[name]
    words = ["<eos>", "<unk>", "user", "model", "assistant", "fraud", ":"]
    raw = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": ["<start>", "<end>"]})
    made.add_tokens(["<plain>"])  # as Gemma's end of a turn: added, and on no list of special tokens
    made.chat_template = template
    made.save_pretrained(tmp_path)
    assert PolicyTokenizer(tmp_path).answer_ids("fraud") == (5, made.convert_tokens_to_ids(expected))
