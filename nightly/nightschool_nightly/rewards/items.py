"""What an item of a rubric sees and says: the interface that every kind of item implements.

A kind is one file (`checks.py`, `outcome.py`) with its own options, its loader and its criterion, and one line in
`rubric.KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class Prompt(Protocol):
    """What an item may read about the prompt. An example of a night fits it; this room lies below the examples."""

    @property
    def message(self) -> str:
        """The last message of the user."""

    @property
    def references(self) -> Mapping[str, str]:
        """The right answer, by the name of the outcome that says so."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a prompt: sampled by a policy, or written by a human."""

    text: str
    is_whole: bool = True
    """False when it was cut off where production would have gone on; cut off where production cuts, it is all there is."""


class Criterion(Protocol):
    """What one item asks of an answer."""

    @property
    def outcome_names(self) -> tuple[str, ...]:
        """Outcomes it must know to decide."""

    def passes(self, prompt: Prompt, answer: Answer) -> bool | None:
        """Whether the answer passes; None when that cannot be decided."""

    def fails_already(self, prompt: Prompt, beginning: str) -> bool:
        """Whether an answer that begins so fails however it goes on; False where that cannot be told."""
