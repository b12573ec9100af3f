"""What humans finally chose, which is what a rubric compares an answer with."""

from __future__ import annotations

from collections.abc import Sequence

from nightschool.episode import OutcomeHistory, RecordedCall
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.rewards.rubric import Rubric


def find_references(call: RecordedCall, outcomes: Sequence[OutcomeHistory], rubric: Rubric) -> dict[str, str] | DropReason:
    """What the human finally chose, for each outcome the rubric needs; or the reason why that is not known."""
    references: dict[str, str] = {}
    for name in rubric.outcome_names:
        about = (history for history in outcomes if history.current.name == name and history.span_id in (None, call.span_id))
        texts = {text for history in about if (text := _chosen(call, history)) is not None}
        if not texts:
            return DropReason.NO_OUTCOME
        if len(texts) > 1:
            return DropReason.CONFLICT
        references[name] = texts.pop()
    return references


def _chosen(call: RecordedCall, history: OutcomeHistory) -> str | None:
    """The right answer by one outcome: the human's own text, a text value, or the model's answer if it was approved."""
    outcome = history.current
    if outcome.final_answer is not None:
        return outcome.final_answer
    if isinstance(outcome.value, str):
        return outcome.value
    return call.answer.text if outcome.value is True else None  # "wrong" alone does not say what is right
