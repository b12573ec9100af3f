"""What the outcomes of a call say about its right answer: what a rubric compares with, and what a human wrote.

Only a text says what is right. A thumb, a rating or True says how good an answer was; it makes neither a reference nor
a demonstration, and it never turns what the model wrote into what a human wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nightschool.episode import OutcomeHistory, RecordedCall
from nightschool.outcomes.record import Outcome
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.rewards.rubric import Rubric

_HUMAN = "human"


@dataclass(frozen=True, slots=True)
class References:
    """What is known about the right answer to one prompt."""

    texts: Mapping[str, str]
    """The right answer by the name of the outcome that says so, for every outcome that the rubric reads."""
    demonstration: str | None = None
    """The answer that a human wrote, where one text is the whole answer; the policy may learn to write it."""


def find_references(call: RecordedCall, outcomes: Sequence[OutcomeHistory], rubric: Rubric) -> References | DropReason:
    """What the outcomes say, for each one that the rubric needs; or the reason why that is not known."""
    texts: dict[str, str] = {}
    are_human = True
    for name in rubric.outcome_names:
        about = [h.current for h in outcomes if h.current.name == name and h.span_id in (None, call.span_id)]
        given = [outcome for outcome in about if _text_of(outcome) is not None]
        if not given:
            return DropReason.OUTCOME_WITHOUT_TEXT if about else DropReason.NO_OUTCOME
        # What a person chose outranks what a program or a model said about the same answer.
        by_human = [outcome for outcome in given if outcome.source_kind == _HUMAN]
        chosen = _distinct_texts(by_human or given)
        if len(chosen) > 1:
            return DropReason.CONFLICT
        texts[name] = chosen.pop()
        are_human = are_human and bool(by_human)
    demonstration = next(iter(texts.values())) if len(texts) == 1 and are_human else None
    return References(texts, demonstration)


def _distinct_texts(outcomes: Iterable[Outcome]) -> set[str]:
    return {text for outcome in outcomes if (text := _text_of(outcome)) is not None}


def _text_of(outcome: Outcome) -> str | None:
    """The right answer by one outcome: a final answer, or a value that is a text."""
    if outcome.final_answer is not None:
        return outcome.final_answer
    return outcome.value if isinstance(outcome.value, str) else None
