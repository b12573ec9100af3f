"""Groups: the sampled answers of a prompt and the human's own."""

from __future__ import annotations

from collections.abc import Callable

from nightschool_nightly.examples.example import Example
from nightschool_nightly.rewards.rubric import parse_rubric
from nightschool_nightly.rollouts.sampler import Rollout
from nightschool_nightly.training.group import score_group

RUBRIC = parse_rubric('task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"')
RIGHT = Rollout((5, 2), (-0.1, -0.2), "fraud", finished=True)
WRONG = Rollout((6, 2), (-0.3, -0.4), "card", finished=True)
CUT = Rollout((5, 5), (-0.3, -0.4), "fraud", finished=False)


def test_the_humans_answer_is_one_more_member(make_example: Callable[..., Example]) -> None:
    """It has its own reward and tokens, no sampler, and does not count as a rollout."""
    group = score_group(make_example(), [RIGHT, WRONG], RUBRIC, (5, 2))
    assert [member.reward for member in group.members] == [1.0, 0.0, 1.0]
    assert group.members[2].sampler_logprobs is None and group.members[2].token_ids == (5, 2)
    assert group.members[1].sampler_logprobs == (-0.3, -0.4)
    assert group.rollouts == group.members[:2]


def test_without_demonstration_the_group_is_the_rollouts(make_example: Callable[..., Example]) -> None:
    """No tokens for it (too long), or no human answer at all: nothing is added."""
    assert len(score_group(make_example(), [RIGHT], RUBRIC, None).members) == 1
    assert len(score_group(make_example(demonstration=None), [RIGHT], RUBRIC, (5, 2)).members) == 1


def test_an_answer_cut_below_productions_limit_is_unscored(make_example: Callable[..., Example]) -> None:
    """Cut where production would have gone on, an answer says nothing; cut where production cuts too, it is scored."""
    below, same = (make_example(max_tokens=limit, rollout_tokens=8) for limit in (9, 8))
    assert [member.reward for member in score_group(below, [CUT, RIGHT], RUBRIC, None).members] == [None, 1.0]
    gone_on = Rollout((6, 6), (-0.3, -0.4), "It seems to me", finished=False)
    assert [member.reward for member in score_group(below, [gone_on], RUBRIC, None).members] == [0.0]
    assert [member.reward for member in score_group(same, [CUT], RUBRIC, None).members] == [1.0]
