"""How long a rollout may become in training.

Production's own limit is often thousands of tokens away, and one rollout that never ends would cost as much as all the
others: a base model that goes on and on would make a night of minutes one of hours. So training cuts earlier, but with
room: a limit close to the right answers would teach brevity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from nightschool_nightly.examples.example import Example

_ROOM = 2  # times the longest: a better answer may be longer than any that was given
_LEAST = 64  # tokens: after a day of one-word answers too, a policy that explores may write a sentence


class TextTokenizer(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str, **options: Any) -> list[int]: ...


def limit_rollouts(examples: Sequence[Example], tokenizer: TextTokenizer, *, max_tokens: int) -> list[Example]:
    """The examples with the limit of their rollouts: `max_tokens`, or where that is 0 by the answers of all of them.

    The answers are those that humans wrote; where nobody wrote one, what production said. No limit is above
    production's own.
    """
    limit = max_tokens or max(_LEAST, _ROOM * _longest(examples, tokenizer))
    return [replace(example, rollout_tokens=min(limit, example.max_tokens)) for example in examples]


def _longest(examples: Sequence[Example], tokenizer: TextTokenizer) -> int:
    """Tokens of the longest answer to go by, its end of turn included."""
    written = [example.demonstration for example in examples if example.demonstration]
    texts = written or [example.answer for example in examples]
    return max((len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts), default=0)
