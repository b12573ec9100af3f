"""Forward KL between what was kept of the base model and a policy's logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nightschool_nightly.training.divergence import forward_kl, join_predictions, keep_prediction

V, T = 300, 20


def two_models(*, moved: float) -> tuple[Tensor, Tensor]:
    """Logits [T, V] of a base model with a long tail, and of one that has moved away from it."""
    generator = torch.Generator().manual_seed(0)
    base_TV = 4 * torch.randn(T, V, generator=generator)
    return base_TV, base_TV + moved * torch.randn(T, V, generator=generator)


def exact(base_TV: Tensor, policy_TV: Tensor) -> Tensor:
    """The definition, in fp64."""
    base, policy = base_TV.double().log_softmax(-1), policy_TV.double().log_softmax(-1)
    return (base.exp() * (base - policy)).sum(-1)


@pytest.mark.parametrize("moved", [0.0, 0.05, 1.0])
def test_it_is_the_forward_kl(moved: float) -> None:
    """With the whole distribution kept, only the rounding of its probabilities to bf16 is lost."""
    base_TV, policy_TV = two_models(moved=moved)
    found_T = forward_kl(keep_prediction(base_TV), policy_TV)
    torch.testing.assert_close(found_T.double(), exact(base_TV, policy_TV), rtol=0.01, atol=1e-4)
    assert bool((found_T > -1e-5).all())


def test_its_gradient_is_policy_minus_base() -> None:
    """d KL / d logits = p_policy - p_base: a token the base finds likelier is pulled up, any other down."""
    base_TV, policy_TV = two_models(moved=1.0)
    policy_TV.requires_grad_()
    (found_TV,) = torch.autograd.grad(forward_kl(keep_prediction(base_TV), policy_TV).sum(), policy_TV)
    torch.testing.assert_close(found_TV, policy_TV.softmax(-1) - base_TV.softmax(-1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("kept", [1, 5, 50, 299])
def test_merging_tokens_misses_no_more_than_the_stated_bound(kept: int) -> None:
    """The short form never says more than the KL, and less by at most R * (max - min) over the merged tokens."""
    base_TV, policy_TV = two_models(moved=0.5)
    short = keep_prediction(base_TV, whole_up_to=10, kept_tokens=kept)
    assert short.token_TK is not None and short.probability_TK.shape == (T, kept)
    missed_T = exact(base_TV, policy_TV) - forward_kl(short, policy_TV).double()
    ratio_TV = base_TV.log_softmax(-1) - policy_TV.log_softmax(-1)
    tokens = short.token_TK.long()
    highest_T = ratio_TV.scatter(-1, tokens, -torch.inf).amax(-1)
    lowest_T = ratio_TV.scatter(-1, tokens, torch.inf).amin(-1)
    assert bool((missed_T > -1e-5).all())
    assert bool((missed_T <= short.rest_T * (highest_T - lowest_T) + 1e-5).all())


def test_the_short_form_has_the_gradient_of_its_own_value() -> None:
    """Every logit is pulled, those of merged tokens as one: the gradient is that of finite differences."""
    base_TV, policy_TV = (logits[:2, :8].double() for logits in two_models(moved=0.5))
    short = keep_prediction(base_TV, whole_up_to=4, kept_tokens=3)
    assert torch.autograd.gradcheck(lambda x: forward_kl(short, x), policy_TV.clone().requires_grad_(), eps=1e-5, atol=1e-4)


def test_what_the_policy_has_given_up_is_still_counted() -> None:
    """A policy that is sure of one token pays for all the mass the base had elsewhere, in either form: no rounding hides it."""
    base_TV, policy_TV = torch.zeros(1, V), torch.zeros(1, V)
    base_TV[0, 0], policy_TV[0, 0] = 0.1, 60.0
    expected = float(exact(base_TV, policy_TV))
    assert expected > 50
    for kept in (keep_prediction(base_TV), keep_prediction(base_TV, whole_up_to=10, kept_tokens=5)):
        assert float(forward_kl(kept, policy_TV)) == pytest.approx(expected, rel=1e-3)


def test_joined_predictions_are_compared_one_by_one() -> None:
    """Positions of several answers, joined, give the numbers that each gives alone."""
    base_TV, policy_TV = two_models(moved=1.0)
    for options in ({}, {"whole_up_to": 10, "kept_tokens": 7}):
        parts = [keep_prediction(base_TV[:5], **options), keep_prediction(base_TV[5:], **options)]
        joined_T = forward_kl(join_predictions(parts), policy_TV)
        alone = [forward_kl(parts[0], policy_TV[:5]), forward_kl(parts[1], policy_TV[5:])]
        torch.testing.assert_close(joined_T, torch.cat(alone))
        assert len(join_predictions(parts)) == T
