"""Advantages, by hand-computed numbers."""

from __future__ import annotations

import math

import pytest

from nightschool_nightly.training.advantage import GroupFate, group_advantages, group_fate

EPSILON = 1e-4


def test_advantages_are_centred_by_group_and_scaled_by_batch() -> None:
    """Each reward minus its group's mean, over the root mean square of all those differences."""
    found = group_advantages([[1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    scale = math.sqrt((2 * 0.25 + 0.75**2 + 3 * 0.25**2) / 6) + EPSILON
    assert found.values[0] == pytest.approx((0.5 / scale, -0.5 / scale))
    assert found.values[1] == pytest.approx((0.75 / scale, -0.25 / scale, -0.25 / scale, -0.25 / scale))
    assert found.fates == (GroupFate.KEPT, GroupFate.KEPT)


def test_an_unscored_member_is_outside_the_baseline() -> None:
    """What could not be scored takes no part, and does not pull the mean as a zero would."""
    assert group_advantages([[1.0, None, 0.0]]).values[0] == pytest.approx((0.5 / (0.5 + EPSILON), None, -0.5 / (0.5 + EPSILON)))


def test_only_kept_groups_enter_the_scale() -> None:
    """Groups without a signal change no other group's advantages."""
    alone = group_advantages([[1.0, 0.0]])
    beside = group_advantages([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0], [0.0, None]])
    assert beside.values == ((None,) * 4, alone.values[0], (None, None))


@pytest.mark.parametrize(
    ("rewards", "fate"),
    [
        ([], GroupFate.UNSCORED),
        ([0.5, None], GroupFate.UNSCORED),
        ([None, None], GroupFate.UNSCORED),
        ([1.0, 1.0, None], GroupFate.ALL_PASS),
        ([1.0, 1.0 - 1e-9], GroupFate.ALL_PASS),
        ([0.0, 0.0], GroupFate.UNIFORM),
        ([0.4, 0.4 + 1e-9, 0.4], GroupFate.UNIFORM),
        ([0.4, 0.41], GroupFate.KEPT),
    ],
)
def test_a_group_without_spread_is_left_out_by_name(rewards: list[float | None], fate: GroupFate) -> None:
    """A group is kept only when two scored members differ, and all-pass is told apart from merely uniform."""
    assert group_fate(rewards) is fate
    found = group_advantages([rewards])
    assert found.fates == (fate,)
    assert (found.values[0] == (None,) * len(rewards)) is (fate is not GroupFate.KEPT)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_is_refused(bad: float) -> None:
    """NaN and infinity are errors, even in a group that carries no signal; unknown is None."""
    with pytest.raises(ValueError, match="not finite; an unknown reward is None"):
        group_advantages([[1.0, 0.0], [bad]])


def test_negative_weight_scales_only_what_pushes_down() -> None:
    """Positive advantages and the scale stay; negative ones are multiplied."""
    whole, softer = (
        group_advantages([[1.0, 0.0, 0.0]]).values[0],
        group_advantages([[1.0, 0.0, 0.0]], negative_weight=0.2).values[0],
    )
    assert softer[0] == whole[0]
    assert softer[1:] == tuple(0.2 * value for value in whole[1:] if value is not None)


def test_a_batch_without_groups_is_no_error() -> None:
    """Nothing in, nothing out."""
    assert group_advantages([]).values == ()
