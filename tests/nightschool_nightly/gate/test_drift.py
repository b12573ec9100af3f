"""How far the policy is from its base model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nightschool_nightly.gate.drift import Drift
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample

SAMPLES = [Sample((1, 2, 3), (4, 5)), Sample((6, 7), (8,))]


def exact_kl(policy: Policy) -> float:
    """The same quantity position by position: forward KL over the vocabulary, from plain rows."""
    values: list[float] = []
    for sample in SAMPLES:
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        mask = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()

        def log_softmax(ids: torch.Tensor = ids, mask: torch.Tensor = mask) -> torch.Tensor:
            return policy.logits(policy.hidden(ids, torch.arange(ids.shape[1])[None], mask))[0].double().log_softmax(-1)

        with torch.no_grad(), policy.base():
            base = log_softmax()
        with torch.no_grad():
            divergence = (base.exp() * (base - log_softmax())).sum(-1)
        values += divergence[len(sample.prompt_ids) - 1 : -1].tolist()
    return sum(values) / len(values)


def test_a_new_policy_is_at_no_distance(make_policy: Callable[..., Policy]) -> None:
    """Before the first step the KL is zero, up to the rounding of what is kept of the base."""
    assert Drift(make_policy(), SAMPLES).measure() == pytest.approx(0.0, abs=1e-4)


def test_it_is_the_forward_kl_of_now(make_policy: Callable[..., Policy]) -> None:
    """Measured against the base as it was kept, on the policy as it is, over the distinct positions of the answers."""
    policy = make_policy()
    drift = Drift(policy, SAMPLES)
    for parameter in policy.parameters.values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert drift.measure() > 0.01
    assert drift.measure() == pytest.approx(exact_kl(policy), rel=0.02)


def test_the_adapter_is_on_again_afterwards(make_policy: Callable[..., Policy]) -> None:
    """Measuring the base switches the adapter off only for that."""
    policy = make_policy(moved=0.2)
    Drift(policy, SAMPLES)
    assert all(layer.enabled for layer in policy.layers.values())
