"""The KL term: what a step takes along, its value, and what it does to learning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from nightschool_nightly.gate.drift import Drift
from nightschool_nightly.training.anchor import Anchor
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, pack_tree

GENERAL = [Sample((1, 2, 3), (4, 5)), Sample((6, 7), (8,)), Sample((6, 9), (8, 1, 2)), Sample((9, 9), (9,)), Sample((4,), (5, 6))]
OTHERS = [Sample((20, 21), (22, 23)), Sample((20, 21), (24,)), Sample((1, 2, 3), (4, 9))]

MakePolicy = Callable[..., Policy]


def test_every_sample_comes_equally_often(make_policy: MakePolicy) -> None:
    """Passes over all of them, each in an order of its own; a step takes none twice, and its number alone decides."""
    anchor = Anchor(make_policy(), GENERAL, per_step=2, seed=1)
    taken = [anchor.of_step(number) for number in range(10)]
    assert set(Counter(number for step in taken for number in step).values()) <= {3, 4}
    assert all(len(set(step)) == len(step) for step in taken)
    assert taken[3] == Anchor(make_policy(), GENERAL, per_step=2, seed=1).of_step(3)
    assert taken != [Anchor(make_policy(), GENERAL, per_step=2, seed=2).of_step(number) for number in range(10)]
    assert sorted(Anchor(make_policy(), GENERAL, per_step=99, seed=1).of_step(0)) == [0, 1, 2, 3, 4]


def test_its_value_is_the_kl_at_every_position_of_its_answers(make_policy: MakePolicy) -> None:
    """Packed behind other samples into one tree, the term is what each answer gives alone, position by position."""
    policy = make_policy()
    anchor = Anchor(policy, GENERAL, per_step=3, seed=0)
    alone = [Drift(policy, [sample]) for sample in GENERAL]
    for parameter in policy.parameters.values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    numbers = [2, 0, 4]
    tree = pack_tree([*OTHERS, *anchor.samples(numbers)])
    found = anchor.kl(numbers, tree, len(OTHERS), policy.tree_hidden(tree))
    lengths = [len(GENERAL[number].completion_ids) for number in numbers]
    expected = sum(alone[number].measure() * length for number, length in zip(numbers, lengths, strict=True)) / sum(lengths)
    assert expected > 0.01
    assert float(found.detach()) == pytest.approx(expected, rel=1e-3)


def test_its_gradient_leads_back_to_the_base(make_policy: MakePolicy) -> None:
    """Following the term alone, a policy that had moved away answers general prompts as the base model again."""
    policy = make_policy(moved=0.1)
    anchor, drift = Anchor(policy, GENERAL, per_step=5, seed=0), Drift(policy, GENERAL)
    optimizer = torch.optim.Adam(policy.parameters.values(), lr=1e-2)
    before = drift.measure()
    for _ in range(30):
        optimizer.zero_grad()
        tree = pack_tree(anchor.samples(range(5)))
        anchor.kl(range(5), tree, 0, policy.tree_hidden(tree)).backward()
        optimizer.step()
    assert before > 0.05 and drift.measure() < 0.2 * before


def test_the_base_is_kept_even_when_the_policy_has_moved(make_policy: MakePolicy) -> None:
    """A night on top of a release holds to the base model, not to the release."""
    policy = make_policy(moved=0.2)
    anchor = Anchor(policy, GENERAL, per_step=5, seed=0)
    tree = pack_tree(anchor.samples(range(5)))
    assert float(anchor.kl(range(5), tree, 0, policy.tree_hidden(tree)).detach()) > 0.01
    with policy.base():
        assert float(anchor.kl(range(5), tree, 0, policy.tree_hidden(tree)).detach()) == pytest.approx(0.0, abs=1e-4)


def test_answers_of_no_tokens_are_left_out(make_policy: MakePolicy) -> None:
    """An answer that ended at once has no position to compare."""
    anchor = Anchor(make_policy(), [Sample((1,), ()), Sample((2,), (3,))], per_step=4, seed=0)
    assert anchor.samples(anchor.of_step(0)) == [Sample((2,), (3,))]
    assert Anchor(make_policy(), [], per_step=4, seed=0).of_step(0) == []
