"""A group: every answer to one prompt with its reward. Step 4 of a night makes groups, step 5 learns from them.

The group is the sampled rollouts and, where an outcome holds the human's own final answer, that answer as one more
member. So a group that no rollout solves still carries a signal, and in one that every rollout solves the human's
answer changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nightschool_nightly.examples.example import Example
from nightschool_nightly.rewards.items import Answer
from nightschool_nightly.rewards.rubric import Rubric
from nightschool_nightly.rollouts.sampler import Rollout


@dataclass(frozen=True, slots=True)
class Member:
    """One answer of a group with its reward."""

    token_ids: tuple[int, ...]
    text: str
    reward: float | None
    """None: unscored, so it takes no part."""
    sampler_logprobs: tuple[float, ...] | None
    """One per token; None for the human's answer, which no policy sampled."""


@dataclass(frozen=True, slots=True)
class Group:
    """Every answer to one prompt."""

    example: Example
    members: tuple[Member, ...]

    @property
    def rollouts(self) -> tuple[Member, ...]:
        """The sampled members, without the human's."""
        return tuple(member for member in self.members if member.sampler_logprobs is not None)

    @property
    def rewards(self) -> tuple[float | None, ...]:
        """The reward of each member, in order."""
        return tuple(member.reward for member in self.members)


def score_group(
    example: Example, rollouts: Sequence[Rollout], rubric: Rubric, demonstration_ids: tuple[int, ...] | None
) -> Group:
    """Score the rollouts of one prompt, and the human's answer where there is one.

    `demonstration_ids` are the tokens of the human's answer, end of turn included; None leaves it out.
    """
    members = []
    for rollout in rollouts:
        is_whole = rollout.finished or example.rollout_tokens == example.max_tokens
        reward = rubric.score(example, Answer(rollout.text, is_whole=is_whole)).reward
        members.append(Member(rollout.token_ids, rollout.text, reward, rollout.logprobs))
    if demonstration_ids is not None and example.demonstration is not None:
        reward = rubric.score(example, Answer(example.demonstration)).reward
        members.append(Member(demonstration_ids, example.demonstration, reward, sampler_logprobs=None))
    return Group(example, tuple(members))
