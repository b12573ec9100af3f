"""A night whose last step is over the KL budget ends with a smaller change that keeps it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch

from nightschool_nightly.examples.example import Example
from nightschool_nightly.gate.drift import Drift
from nightschool_nightly.gate.evaluation import Alternative
from nightschool_nightly.rescue import Rescue, State, validation_examples
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.share_of_change import share_of_change
from nightschool_nightly.training.tree import Sample

GENERAL = [Sample((1, 2, 3), (4, 5)), Sample((6, 7), (8,)), Sample((9, 9), (9, 3))]

MakePolicy = Callable[..., Policy]


class Night:
    """A policy that has moved away from the base model, and what a rescue asks of it."""

    def __init__(self, policy: Policy, *, by: float, reward_of: Callable[[float], float | None]) -> None:
        self.policy, self.parent = policy, policy.state()
        self.drift, self._reward_of = Drift(policy, GENERAL), reward_of
        generator = torch.Generator().manual_seed(1)
        for parameter in policy.parameters.values():
            parameter.data += by * torch.randn(parameter.shape, generator=generator)
        self.learned, self.kl = policy.state(), self.drift.measure()

    def rescue(self, budget: float, earlier: Sequence[tuple[int, float, State]] = ()) -> tuple[Alternative, ...]:
        def validate() -> Sequence[float | None]:
            return [self._reward_of(self.drift.measure()), None]

        self.policy.put(self.learned)
        rescue = Rescue(self.policy, self.parent, kl_budget=budget, measure_kl=self.drift.measure, validate=validate)
        return rescue.choose(40, self.kl, earlier)


def test_the_largest_share_that_keeps_the_budget_is_the_candidate(make_policy: MakePolicy) -> None:
    """What the larger ones would have given stands beside it, and nothing smaller is tried."""
    night = Night(make_policy(), by=0.1, reward_of=lambda kl: min(1.0, kl))
    night.policy.put(share_of_change(night.parent, night.learned, 0.5))
    budget = night.drift.measure() * 1.01
    assert night.kl > 1.2 * budget
    found = night.rescue(budget)
    assert [each.share for each in found if each.chosen] == [0.5]
    assert found[0].chosen and found[0].kl <= budget
    assert {each.share for each in found} == {1.0, 0.75, 0.5}
    assert all(each.reward is not None and each.num_prompts == 1 for each in found)
    assert night.drift.measure() == pytest.approx(found[0].kl)
    assert all(torch.equal(night.policy.state()[n], t) for n, t in share_of_change(night.parent, night.learned, 0.5).items())


def test_an_earlier_step_that_answers_better_is_chosen(make_policy: MakePolicy) -> None:
    """Validation decides among all that keep the budget, shares and earlier steps alike."""
    night = Night(make_policy(), by=0.1, reward_of=lambda kl: 1 - kl)  # the less it has moved, the better
    earlier = {step: share_of_change(night.parent, night.learned, share) for step, share in ((10, 0.1), (20, 0.2), (30, 0.9))}
    kls = {}
    for step, state in earlier.items():
        night.policy.put(state)
        kls[step] = night.drift.measure()
    found = night.rescue(kls[20] * 1.5, [(step, kls[step], state) for step, state in earlier.items()])
    assert (found[0].step, found[0].share, found[0].chosen) == (10, 1.0, True)
    assert 30 not in {each.step for each in found}, "it does not keep the budget"
    assert all(torch.equal(night.policy.state()[name], tensor) for name, tensor in earlier[10].items())


def test_when_nothing_keeps_the_budget_the_gate_sees_the_last_step(make_policy: MakePolicy) -> None:
    """Nothing is chosen, every figure is there, and the policy is as training left it."""
    night = Night(make_policy(), by=0.2, reward_of=lambda kl: 1.0)
    found = night.rescue(0.0)
    assert not any(each.chosen for each in found) and {each.share for each in found} == {1.0, 0.75, 0.5, 0.35, 0.25}
    assert all(torch.equal(night.policy.state()[name], night.learned[name]) for name in night.learned)


def test_a_kl_that_is_no_number_is_never_within_the_budget(make_policy: MakePolicy) -> None:
    """It is not less than anything, and does not pass for it."""
    night = Night(make_policy(), by=0.1, reward_of=lambda kl: 1.0)
    rescue = Rescue(night.policy, night.parent, kl_budget=1.0, measure_kl=lambda: math.nan, validate=list)
    assert not any(each.chosen for each in rescue.choose(40, math.nan, []))


def test_unscored_answers_are_not_zero(make_policy: MakePolicy) -> None:
    """A candidate that nobody could score has no reward, and loses against one that has."""
    night = Night(make_policy(), by=0.1, reward_of=lambda kl: None if kl > 1e-3 else 0.0)
    found = night.rescue(night.kl * 0.9, [(10, 0.0, night.parent)])
    assert (found[0].step, found[0].reward) == (10, 0.0)
    assert {each.reward for each in found[1:]} == {None}


def test_on_a_release_the_rank_stays(make_policy: MakePolicy) -> None:
    """A share between two adapters has the rank that serving knows."""
    night = Night(make_policy(moved=0.1), by=0.1, reward_of=lambda kl: kl)
    night.policy.put(night.parent)
    parent_kl = night.drift.measure()
    found = night.rescue((parent_kl + night.kl) / 2)
    assert found[0].chosen and found[0].share < 1
    assert {n: t.shape for n, t in night.policy.state().items()} == {n: t.shape for n, t in night.learned.items()}


def test_validation_prompts_are_those_of_a_quarter_of_the_training_users(make_example: Callable[..., Example]) -> None:
    """Whole users, at most 64 prompts, the same every time."""
    train = [make_example(f"e{n}", cluster=f"user-{n % 40}") for n in range(200)]
    found = validation_examples(train, seed=7)
    assert found == validation_examples(train, seed=7) != validation_examples(train, seed=8)
    users = Counter(example.cluster for example in found)
    assert len(users) == 10 and set(users.values()) == {5}
    assert len(validation_examples([make_example(f"e{n}", cluster=f"u{n}") for n in range(1000)], seed=7)) == 64
    assert len(validation_examples(train[:1], seed=7)) == 1
