"""The GRPO policy loss, maths only: tensors in, tensors and metrics out.

    loss = - sum_it  w_it * A_i * exp(l_it - sg[l_it])  /  N

for token t of member i, where l is the trainer's log-probability, sg[] stops the gradient, and A_i is the member's
advantage.

- **Policy term**: GRPO (DeepSeekMath, arXiv 2402.03300). There is one optimizer step for each batch of rollouts, so
  the policy that sampled is the policy that learns and the PPO ratio (arXiv 1707.06347) is 1: clipping can never act,
  and a forward pass for the old log-probabilities is not needed. exp(l - sg[l]) is that ratio: its value is 1, its
  gradient is that of l.
- **w**: what remains is the mismatch between the engine that sampled and the trainer. It is corrected for each token
  by truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
  Training"): w = min(exp(l - l_sampler), 2), without gradient. Nobody sampled a human's own answer, so no ratio exists
  for it: it takes part as a supervised term with its advantage and w = 1, which is a choice and not an estimate. Nothing
  would bound it from below, so the trainer takes only its positive advantages.
- **N**: the mean is over all trained tokens of the step, not first over each answer (DAPO, arXiv 2503.14476): a token
  of a long answer weighs as much as one of a short answer (Dr. GRPO, arXiv 2503.20783, on what the other way favors).
  It counts the tokens that move the policy: not those of members whose advantage is 0, of human answers that would be
  pushed down, or of members left out because sampler and trainer disagree (`Trainer` takes these out of the mean).

Shapes: N trained tokens, member after member. `total_tokens` counts those of the whole step, over every micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nightschool_nightly.training.metrics import LossMetrics

# Weights are cut here, so that rare tokens do not dominate a batch: a small bias for much less variance.
_TRUNCATE_AT = 2.0
# In nats. Rounding in bf16 moves a log-probability by tenths. A token this far off was sampled with other weights, so
# its member is left out and counted.
_TOKEN_LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class MemberTerms:
    """What a member of a group brings to the loss, beside its tokens."""

    advantage: float
    sampler_logprobs: tuple[float, ...] | None
    """One per completion token; None for a human's answer, which was not sampled."""


def policy_loss(
    logprobs_N: Tensor, lengths: Sequence[int], members: Sequence[MemberTerms], *, total_tokens: int
) -> tuple[Tensor, LossMetrics]:
    """The loss of one micro-batch and its metrics.

    Args:
        logprobs_N: the trainer's log-probability of every completion token, in nats, member by member, with gradient.
        lengths: completion length of each member; they add up to N.
        members: advantage and sampler log-probabilities of each member.
        total_tokens: tokens of the whole optimizer step, members left out included: any split into micro-batches gives the same gradient.

    The sampler's log-probabilities must be at the same temperature as the trainer's. `ValueError` when a member does
    not have as many of them as tokens.
    """
    current_N = logprobs_N.detach()
    sampler_N, sampled_N = _sampler(current_N, lengths, members)
    difference_N = torch.where(sampled_N, current_N - sampler_N, 0.0)
    keep_N, left_out = _keep(difference_N, lengths)
    ratio_N = torch.exp(difference_N)  # 1 where nobody sampled
    weight_N = torch.where(sampled_N, ratio_N.clamp(max=_TRUNCATE_AT), 1.0) * keep_N
    advantage_N = torch.repeat_interleave(torch.tensor([m.advantage for m in members]), torch.tensor(list(lengths)))
    loss = -(weight_N * advantage_N * torch.exp(logprobs_N - current_N)).sum() / total_tokens
    metrics = LossMetrics(
        mismatches=tuple(difference_N[sampled_N].abs().tolist()),
        truncated_tokens=int((sampled_N & (ratio_N > _TRUNCATE_AT)).sum()),
        members_left_out=left_out,
        left_out_tokens=int((keep_N == 0).sum()),
    )
    return loss, metrics


def _sampler(current_N: Tensor, lengths: Sequence[int], members: Sequence[MemberTerms]) -> tuple[Tensor, Tensor]:
    """The sampler's log-probabilities [N] (the trainer's own where nobody sampled), and whether somebody did [N]."""
    values: list[float] = []
    sampled: list[bool] = []
    for length, member in zip(lengths, members, strict=True):
        if member.sampler_logprobs is not None and len(member.sampler_logprobs) != length:
            raise ValueError(f"a member has {length} tokens and {len(member.sampler_logprobs)} sampler log-probabilities")
        values += member.sampler_logprobs or (0.0,) * length
        sampled += [member.sampler_logprobs is not None] * length
    sampled_N = torch.tensor(sampled, dtype=torch.bool)
    return torch.where(sampled_N, torch.tensor(values, dtype=current_N.dtype), current_N), sampled_N


def _keep(difference_N: Tensor, lengths: Sequence[int]) -> tuple[Tensor, int]:
    """1 for tokens of members whose sampler and trainer agree, 0 for the others, and how many members are left out."""
    agree = [bool((part.abs() <= _TOKEN_LIMIT).all()) for part in torch.split(difference_N, list(lengths))]
    keep_N = torch.repeat_interleave(torch.tensor(agree, dtype=difference_N.dtype), torch.tensor(list(lengths)))
    return keep_N, agree.count(False)
