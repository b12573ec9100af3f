"""What a night found out about its candidate, kept between training and deciding."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from nightschool.errors import NightError
from nightschool_nightly.gate.evaluation import Alternative, Answers, Contender, Evaluation
from nightschool_nightly.training.advantage import GroupFate
from nightschool_nightly.training.metrics import StepMetrics

STEP = StepMetrics(0, 0.5, None, 8, 1, 2, {"kept": 1, "uniform": 3}, 0.1, None, 0, 0, 10, 40, None, 0.25)
BASE = Answers(Contender.BASE, ("loan", "card"), (0.0, None), (False, True))
RELEASE = Answers(Contender.RELEASE, ("card", "card"), (0.5, 1.0), (False, False))
CANDIDATE = Answers(Contender.CANDIDATE, ("fraud", "card"), (1.0, 1.0), (True, False))


@pytest.mark.parametrize("release", [None, RELEASE])
def test_an_evaluation_comes_back_whole(release: Answers | None) -> None:
    """A night killed before it decided decides on the very same numbers, with a release before it and without."""
    found = Evaluation((STEP, replace(STEP, step=1)), 0.25, BASE, release, CANDIDATE)
    assert Evaluation.from_json(found.to_json()) == found


def test_what_was_weighed_comes_back_and_may_be_missing() -> None:
    """Smaller changes stand in the file with their figures; a file from before there were such is read as without."""
    weighed = (Alternative(40, 0.5, 0.08, 0.7, 60, chosen=True), Alternative(40, 1.0, 0.4, None, 0, chosen=False))
    found = Evaluation((STEP,), 0.08, BASE, None, CANDIDATE, weighed)
    assert Evaluation.from_json(found.to_json()) == found
    raw = json.loads(found.to_json())
    del raw["alternatives"]
    assert Evaluation.from_json(json.dumps(raw)).alternatives == ()
    assert [each.describe() for each in weighed] == [
        "step 40, 0.5 of the change: KL 0.080, reward 0.700 on 60 prompts (chosen)",
        "step 40: KL 0.400, no scored answer",
    ]


def test_policies_are_found_by_name() -> None:
    """The order in the file does not matter."""
    raw = json.loads(Evaluation((STEP,), 0.25, BASE, RELEASE, CANDIDATE).to_json())
    assert set(raw["answers"]) == {"base", "release", "candidate"}
    raw["answers"] = dict(reversed(raw["answers"].items()))
    found = Evaluation.from_json(json.dumps(raw))
    assert (found.base, found.release, found.candidate) == (BASE, RELEASE, CANDIDATE)


def test_what_served_before_is_the_release_or_the_base() -> None:
    """On a tenant's first night there is no release: the app was answered by the base model."""
    assert Evaluation((STEP,), 0.25, BASE, RELEASE, CANDIDATE).before == RELEASE
    assert Evaluation((STEP,), 0.25, BASE, None, CANDIDATE).before == BASE


def test_a_signal_is_one_group_whose_rewards_differ() -> None:
    """One such group in any step is enough; groups of every other fate teach nothing."""
    nothing = replace(STEP, groups={fate.value: int(fate is not GroupFate.KEPT) for fate in GroupFate})
    assert not Evaluation((nothing, nothing), 0.0, BASE, None, CANDIDATE).has_signal
    assert Evaluation((nothing, STEP), 0.0, BASE, None, CANDIDATE).has_signal


def test_a_kl_that_is_not_a_number_stays_one() -> None:
    """It must reach the gate, which refuses it, and not become something else on the way."""
    assert math.isnan(Evaluation.from_json(Evaluation((STEP,), math.nan, BASE, None, CANDIDATE).to_json()).kl)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kl": 0.1, "metrics": [], "answers": {"base": {}}}', '{"kl": 0.1, "metrics": [{}]}']
)
def test_a_damaged_evaluation_says_what_to_do(text: str) -> None:
    """It is an error with a remedy, not a traceback."""
    with pytest.raises(NightError, match=r"cannot be read .*; start the night without --resume"):
        Evaluation.from_json(text)
