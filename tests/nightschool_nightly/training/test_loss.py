"""The policy loss against its definition, and against exact enumeration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nightschool_nightly.training.loss import MemberTerms, policy_loss

MEMBERS = [
    MemberTerms(1.3, (-0.9, -2.2, -0.1)),
    MemberTerms(-0.7, (-1.5,)),
    MemberTerms(0.4, None),
    MemberTerms(-0.2, ()),
    MemberTerms(-1.1, (-6.0, -0.3)),  # the first weight is cut at 2
]
LENGTHS = (3, 1, 2, 0, 2)


def logprobs() -> Tensor:
    return torch.tensor([-1.0, -2.0, -0.3, -1.2, -4.0, -0.5, -0.7, -0.2], requires_grad=True)


def naive(
    logprobs_N: Tensor, lengths: Sequence[int], members: Sequence[MemberTerms], *, total_tokens: int
) -> tuple[float, Tensor]:
    """Loss and gradient from the formula, token by token in Python floats; exp(l - sg[l]) is 1 with gradient 1."""
    values = [float(value) for value in logprobs_N.detach().double()]
    loss, gradient, at = 0.0, [], 0
    for length, member in zip(lengths, members, strict=True):
        for position in range(length):
            weight = 1.0
            if member.sampler_logprobs is not None:
                weight = min(math.exp(values[at] - member.sampler_logprobs[position]), 2.0)
            term = -weight * member.advantage / total_tokens
            loss += term
            gradient.append(term)
            at += 1
    return loss, torch.tensor(gradient)


def test_value_and_gradient_are_the_definition() -> None:
    """The loss and its gradient equal the formula evaluated token by token in float64."""
    logprobs_N = logprobs()
    loss, metrics = policy_loss(logprobs_N, LENGTHS, MEMBERS, total_tokens=20)
    (found_N,) = torch.autograd.grad(loss, logprobs_N)
    expected, expected_N = naive(logprobs_N, LENGTHS, MEMBERS, total_tokens=20)
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    torch.testing.assert_close(found_N, expected_N, rtol=1e-6, atol=1e-7)
    assert (metrics.mismatch_tokens, metrics.truncated_tokens, metrics.members_left_out) == (6, 1, 0)
    assert metrics.mismatch_sum == pytest.approx(0.1 + 0.2 + 0.2 + 0.3 + 5.3 + 0.1, rel=1e-5)


@pytest.mark.parametrize(("difference", "weight"), [(-1.0, math.exp(-1)), (math.log(1.9), 1.9), (math.log(2.1), 2.0), (9.0, 2.0)])
def test_importance_weights_are_cut_at_two(difference: float, weight: float) -> None:
    """A token counts by how much likelier the trainer finds it than the sampler did, at most double."""
    logprobs_N = torch.tensor([-1.0], requires_grad=True)
    loss, metrics = policy_loss(logprobs_N, (1,), [MemberTerms(1.0, (-1.0 - difference,))], total_tokens=1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs_N.grad is not None
    assert float(logprobs_N.grad) == pytest.approx(-weight, rel=1e-5)
    assert metrics.truncated_tokens == (weight == 2.0)


def test_a_demonstration_has_weight_one_however_unlikely() -> None:
    """No ratio is estimated for an answer that nobody sampled: no weight, no mismatch, never left out."""
    logprobs_N = torch.tensor([-80.0, -0.01], requires_grad=True)
    loss, metrics = policy_loss(logprobs_N, (2,), [MemberTerms(0.5, None)], total_tokens=2)
    (gradient_N,) = torch.autograd.grad(loss, logprobs_N)
    assert gradient_N.tolist() == [-0.25, -0.25]
    assert (metrics.mismatch_sum, metrics.mismatch_tokens, metrics.truncated_tokens, metrics.members_left_out) == (0.0, 0, 0, 0)


@pytest.mark.parametrize("far", [-10.5, 10.5])
def test_a_member_of_other_weights_is_left_out_whole(far: float) -> None:
    """One token that sampler and trainer see over 10 nats apart takes its whole member out, counted; others stay."""
    logprobs_N = torch.tensor([-11.0, -1.0, -1.0], requires_grad=True)
    members = [MemberTerms(1.0, (-11.0 + far, -1.0)), MemberTerms(1.0, (-1.0,))]
    loss, metrics = policy_loss(logprobs_N, (2, 1), members, total_tokens=3)
    (gradient_N,) = torch.autograd.grad(loss, logprobs_N)
    assert gradient_N.tolist() == pytest.approx([0.0, 0.0, -1 / 3])
    assert metrics.members_left_out == 1


def test_ten_nats_apart_is_still_trained_on() -> None:
    """The limit itself is allowed: only what lies beyond it is another policy's."""
    _, metrics = policy_loss(torch.tensor([-1.0]), (1,), [MemberTerms(1.0, (-11.0,))], total_tokens=1)
    assert metrics.members_left_out == 0


@pytest.mark.parametrize("sampler", [(-1.0,), (-1.0, -1.0, -1.0), ()])
def test_log_probabilities_of_another_length_are_refused(sampler: tuple[float, ...]) -> None:
    """A member whose sampler log-probabilities do not fit its tokens is an error with both counts."""
    with pytest.raises(ValueError, match=f"2 tokens and {len(sampler)} sampler log-probabilities"):
        policy_loss(torch.tensor([-1.0, -1.0]), (2,), [MemberTerms(1.0, sampler)], total_tokens=2)


# --- T6: exact enumeration on a vocabulary of three ---------------------------------------------------------------------
PAIRS = [(first, second) for first in range(3) for second in range(3)]
REWARDS = dict(zip(PAIRS, (1, 0, 0.5, 0, 0, 1, 0.2, 0.9, 0), strict=True))


def test_the_expected_gradient_is_that_of_the_expected_reward() -> None:
    """Over all answers of two tokens, weighted by probability, the loss has the gradient of minus the mean reward."""
    first, second = (torch.randn(*shape, generator=torch.Generator().manual_seed(3)).requires_grad_() for shape in ((3,), (3, 3)))
    logprobs = {(a, b): torch.stack([first.log_softmax(0)[a], second[a].log_softmax(0)[b]]) for a, b in REWARDS}
    chances = {pair: both.sum().exp() for pair, both in logprobs.items()}
    expected_reward = torch.stack([chances[pair] * reward for pair, reward in REWARDS.items()]).sum()
    exact = torch.autograd.grad(expected_reward, (first, second), retain_graph=True)
    surrogate = torch.zeros(())
    for pair, reward in REWARDS.items():
        member = MemberTerms(reward - expected_reward.item(), tuple(logprobs[pair].tolist()))
        surrogate = surrogate + chances[pair].item() * policy_loss(logprobs[pair], (2,), [member], total_tokens=2)[0]
    for ours, theirs in zip(torch.autograd.grad(surrogate, (first, second)), exact, strict=True):
        torch.testing.assert_close(ours, -theirs / 2, rtol=1e-5, atol=1e-6)


def test_importance_weights_correct_for_another_sampler() -> None:
    """Answers drawn from another distribution have, weighted, the gradient of the policy's own mean reward."""
    theta = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    logprobs_V, sampler_V = theta.log_softmax(0), torch.tensor([0.5, 0.2, 0.3]).log()
    rewards = (1.0, 0.0, 0.25)
    (exact,) = torch.autograd.grad((logprobs_V.exp() * torch.tensor(rewards)).sum(), theta, retain_graph=True)
    surrogate = torch.zeros(())
    for token, reward in enumerate(rewards):
        member = MemberTerms(reward, (float(sampler_V[token]),))
        surrogate = surrogate + sampler_V[token].exp() * policy_loss(logprobs_V[token, None], (1,), [member], total_tokens=1)[0]
    torch.testing.assert_close(torch.autograd.grad(surrogate, theta)[0], -exact, rtol=1e-5, atol=1e-6)
