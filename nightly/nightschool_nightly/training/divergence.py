"""How far a policy's predictions are from the base model's, maths only: tensors in, tensors out.

    KL(base || policy) = sum_v  p_base(v) * (log p_base(v) - log p_policy(v))

Forward KL: the quantity that forgetting follows (RL's Razor, arXiv 2509.04259). What the base model predicts is kept
once and compared with many times, in one of two forms:

- **The whole distribution**, as probabilities in bf16: the rounding of a probability is below 0.4% of it and is undone
  in the sum, while a log-probability of -20 in bf16 would be off by 6%.
- **The likeliest K tokens, and all others as one**, for vocabularies above 100,000 tokens, whose whole distributions
  would take gigabytes. Merging tokens can only lower a KL. What is missed is at most R * (max - min), where R is the
  base model's probability of all merged tokens together and max and min are those of log(p_base / p_policy) over them.
  `BasePrediction.rest_T` holds R.

Shapes: T positions, V vocabulary, K kept tokens of a position (V in the first form).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_WHOLE_UP_TO = 100_000
# 64 answers of 32 tokens take 67 MB. At temperature 1 a chat model's 4,096 likeliest tokens hold more than 99% at
# almost every position.
_KEPT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class BasePrediction:
    """What the base model predicts at T positions. Build with `keep_prediction`."""

    probability_TK: Tensor
    token_TK: Tensor | None
    """The kept tokens; None when all of the vocabulary is kept."""
    rest_T: Tensor
    """Probability of all tokens that are not kept, together."""
    entropy_T: Tensor
    """Of the distribution as it is kept, nats."""

    def __len__(self) -> int:
        return len(self.rest_T)


def keep_prediction(logits_TV: Tensor, *, whole_up_to: int = _WHOLE_UP_TO, kept_tokens: int = _KEPT_TOKENS) -> BasePrediction:
    """Keep what a model with these logits predicts."""
    probability_TV = torch.softmax(logits_TV.float(), dim=-1)
    if logits_TV.shape[-1] <= whole_up_to:
        kept_TV = probability_TV.to(torch.bfloat16)
        return BasePrediction(kept_TV, None, torch.zeros(len(kept_TV), device=kept_TV.device), _entropy(_normalized(kept_TV)))
    probability_TK, token_TK = probability_TV.topk(kept_tokens, dim=-1)
    rest_T = (1 - probability_TK.sum(-1)).clamp(min=0)
    entropy_T = _entropy(torch.cat([probability_TK, rest_T[:, None]], -1))
    return BasePrediction(probability_TK, token_TK.int(), rest_T, entropy_T)


def join_predictions(parts: list[BasePrediction]) -> BasePrediction:
    """Predictions of one form, one after the other."""
    tokens = [part.token_TK for part in parts if part.token_TK is not None]
    return BasePrediction(
        torch.cat([part.probability_TK for part in parts]),
        torch.cat(tokens) if tokens else None,
        torch.cat([part.rest_T for part in parts]),
        torch.cat([part.entropy_T for part in parts]),
    )


def forward_kl(base: BasePrediction, logits_TV: Tensor) -> Tensor:
    """KL(base || policy) at each position [T], nats, with gradient to the policy's fp32 logits."""
    logprob_TV = torch.log_softmax(logits_TV, dim=-1)
    if base.token_TK is None:
        return -(_normalized(base.probability_TK) * logprob_TV).sum(-1) - base.entropy_T
    token_TK = base.token_TK.long()
    crossed_T = -(base.probability_TK * logprob_TV.gather(-1, token_TK)).sum(-1)
    # The policy's probability of the rest is summed over the rest: 1 - (the kept ones) would be rounded away.
    rest_logprob_T = logprob_TV.scatter(-1, token_TK, float("-inf")).logsumexp(-1)
    return crossed_T - base.rest_T * rest_logprob_T - base.entropy_T


def _normalized(probability_TV: Tensor) -> Tensor:
    """In fp32, summing to 1: rounded values no longer do."""
    exact_TV = probability_TV.float()
    return exact_TV / exact_TV.sum(-1, keepdim=True)


def _entropy(probability_TK: Tensor) -> Tensor:
    entropy_T: Tensor = -torch.special.xlogy(probability_TK, probability_TK).sum(-1)
    return entropy_T
