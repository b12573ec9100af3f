"""Items of kind "outcome": the answer equals what the human finally chose.

Such an item cannot decide when there is no outcome of its name: unknown is not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nightschool.errors import RubricError
from nightschool_nightly.rewards.checks import may_become, normalize
from nightschool_nightly.rewards.items import Answer, Prompt
from nightschool_nightly.rewards.options import read_option, refuse_unknown

OPTIONS = frozenset({"outcome", "ignore_case"})
_MUST_BE = "the name that the app gives in nightschool.outcome(...)"


@dataclass(frozen=True, slots=True)
class OutcomeCriterion:
    """The answer equals the reference of one outcome, surrounding white space aside."""

    outcome: str
    ignore_case: bool

    @property
    def outcome_names(self) -> tuple[str, ...]:
        return (self.outcome,)

    def passes(self, prompt: Prompt, answer: Answer) -> bool | None:
        reference = prompt.references.get(self.outcome)
        if reference is None:
            return None
        return normalize(answer.text, ignore_case=self.ignore_case) == normalize(reference, ignore_case=self.ignore_case)

    def fails_already(self, prompt: Prompt, beginning: str) -> bool:
        reference = prompt.references.get(self.outcome)
        if reference is None:
            return False
        wanted = normalize(reference, ignore_case=self.ignore_case)
        return not may_become(beginning, wanted, ignore_case=self.ignore_case)


def load_outcome(options: Mapping[str, Any]) -> OutcomeCriterion:
    """The criterion that an item's options describe; `RubricError` if they do not describe one."""
    refuse_unknown("kind 'outcome'", options, OPTIONS)
    outcome = read_option(options, "outcome", str, must_be=_MUST_BE)
    if not outcome:
        raise RubricError(f"outcome is ''; it must be {_MUST_BE}")
    return OutcomeCriterion(outcome, read_option(options, "ignore_case", bool, False))
