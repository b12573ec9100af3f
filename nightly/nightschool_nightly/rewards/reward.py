"""Step 4 of a night: a group of answers to one prompt, scored by the rubric.

The group is the sampled rollouts and, where an outcome holds the human's own final answer, that answer as one more member: a group
that no rollout solves regains a signal, and one that every rollout solves has none left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nightschool_nightly.examples.example import Example
from nightschool_nightly.rewards.rubric import Rubric
from nightschool_nightly.rollouts.engine import Rollout


@dataclass(frozen=True, slots=True)
class Member:
    """One answer of a group with its reward."""

    token_ids: tuple[int, ...]
    text: str
    reward: float | None
    """None: unscored, takes no part."""
    sampler_logprobs: tuple[float, ...] | None
    """None for the human's answer, which no policy sampled."""


@dataclass(frozen=True, slots=True)
class Group:
    """Every answer to one prompt."""

    example: Example
    members: tuple[Member, ...]

    @property
    def rollouts(self) -> tuple[Member, ...]:
        """The sampled members, without the human's."""
        return tuple(member for member in self.members if member.sampler_logprobs is not None)


def score_group(
    example: Example, rollouts: Sequence[Rollout], rubric: Rubric, demonstration_ids: tuple[int, ...] | None
) -> Group:
    """Score the rollouts of one prompt, and the human's answer if there is one (its tokens, end of turn included)."""
    members = [
        Member(
            token_ids=rollout.token_ids,
            text=rollout.text,
            reward=None if example.cut_short and not rollout.finished else rubric.score(rollout.text, example.references).reward,
            sampler_logprobs=rollout.logprobs,
        )
        for rollout in rollouts
    ]
    if demonstration_ids is not None and example.demonstration is not None:
        reward = rubric.score(example.demonstration, example.references).reward
        members.append(Member(demonstration_ids, example.demonstration, reward, None))
    return Group(example, tuple(members))
