"""Group-relative advantages, scaled by the batch. Plain numbers in, plain numbers out.

    b_q = mean of the scored rewards of group q      d_i = r_i - b_q      A_i = d_i / (s_B + 1e-4)

where s_B is the root mean square of d over every kept group of the batch.

- **b_q**: the group's own mean is the baseline, so no value model is needed (GRPO, DeepSeekMath, arXiv 2402.03300).
- **s_B**: GRPO divides by the group's own standard deviation. That would blow up a group whose only spread is noise to
  unit variance (Dr. GRPO, arXiv 2503.20783, on the bias of it), so the scale is the batch's (as in ScaleRL, arXiv
  2510.13786), and of d and not of the raw rewards, which would mix in how hard the prompts are.

An unscored member takes no part: it is not in the mean and has no advantage. A group without differences carries no
signal and is dropped before anything is computed for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# Rewards closer than this are equal: checks and outcomes are exact, so only the rounding of a sum separates them.
_TIE = 1e-6
_EPSILON = 1e-4  # keeps a batch of almost equal rewards from being divided by almost nothing


class GroupFate(StrEnum):
    """What became of a group."""

    KEPT = "kept"
    """It has at least two scored members that differ: it carries a signal."""
    UNSCORED = "unscored"
    """Fewer than two members could be scored."""
    ALL_PASS = "all-pass"
    """Every scored member has the full reward of 1."""
    UNIFORM = "uniform"
    """Every scored member has the same reward, below 1."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """Advantages of a batch, group by group; None for members that take no part."""

    values: tuple[tuple[float | None, ...], ...]
    fates: tuple[GroupFate, ...]


def group_fate(rewards: Sequence[float | None]) -> GroupFate:
    """Whether a group of rewards (None: unscored) carries a signal."""
    scored = [reward for reward in rewards if reward is not None]
    if len(scored) < 2:
        return GroupFate.UNSCORED
    if max(scored) - min(scored) > _TIE:
        return GroupFate.KEPT
    return GroupFate.ALL_PASS if min(scored) >= 1 - _TIE else GroupFate.UNIFORM


def group_advantages(groups: Sequence[Sequence[float | None]], *, negative_weight: float = 1.0) -> Advantages:
    """Advantages of a batch of groups of rewards; None is an unscored member. `ValueError` for a NaN or infinity.

    `negative_weight` scales negative advantages after normalization: pushing wrong answers down is what moves the
    model most away from its base on everything else, and a value below 1 trades a little speed for that.
    """
    for rewards in groups:
        if any(reward is not None and not math.isfinite(reward) for reward in rewards):
            raise ValueError(f"rewards {rewards} hold a number that is not finite; an unknown reward is None")
    fates = tuple(group_fate(rewards) for rewards in groups)
    centered = [_center(rewards) if fate is GroupFate.KEPT else None for rewards, fate in zip(groups, fates, strict=True)]
    squares = [d * d for group in centered if group is not None for d in group if d is not None]
    scale = math.sqrt(sum(squares) / len(squares)) + _EPSILON if squares else 1.0
    values = tuple(
        tuple(None if d is None else (d / scale) * (negative_weight if d < 0 else 1.0) for d in group)
        if group is not None
        else (None,) * len(rewards)
        for group, rewards in zip(centered, groups, strict=True)
    )
    return Advantages(values, fates)


def _center(rewards: Sequence[float | None]) -> list[float | None]:
    """Each scored reward less the mean of the scored ones."""
    scored = [reward for reward in rewards if reward is not None]
    mean = math.fsum(scored) / len(scored)
    return [None if reward is None else reward - mean for reward in rewards]
