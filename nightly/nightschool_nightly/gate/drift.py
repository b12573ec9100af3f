"""How far the policy has moved from the base model on prompts that have nothing to do with the tenant.

    KL(base || policy) = sum_v  p_base(v) * (log p_base(v) - log p_policy(v))

Forward KL, exact over the vocabulary, at every position of the base model's own answers to general prompts: the
quantity that forgetting follows (RL's Razor, arXiv 2509.04259).

Shapes: P positions that predict something, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nightschool_nightly.rollouts.sampler import Sampler, SampleRequest
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, pack_tree

GENERAL_PROMPTS = (
    "Explain why the sky is blue.",
    "Write a short poem about winter.",
    "What is the capital of Japan and what is it known for?",
    "Give me three tips for learning to cook.",
    "Summarize the plot of Romeo and Juliet.",
    "How do I reverse a list in Python?",
    "What is photosynthesis?",
    "Write an email to my boss asking for a day off.",
    "What causes earthquakes?",
    "Translate 'good morning' into French and Spanish.",
    "Who was Isaac Newton?",
    "Describe a busy street market.",
)
"""Part of what decides: other prompts are another KL, and another budget."""
# What the base model predicts is kept: 12 answers of 32 tokens, 49,152 entries of a vocabulary, bf16: 38 MB.
_ANSWER_TOKENS = 32


class Drift:
    """Forward KL to the base model on fixed base-model answers."""

    def __init__(self, policy: Policy, samples: Sequence[Sample]) -> None:
        """Compute and keep what the base model predicts at every position of `samples`."""
        self._policy = policy
        self._tree = pack_tree(samples)
        with policy.base():
            # bf16 is half the memory, and its rounding is far below any budget.
            self._base_PV = self._log_softmax().to(torch.bfloat16)

    @torch.no_grad()
    def measure(self) -> float:
        """The KL of the policy as it is now: nats per token, the mean over every distinct position of the answers."""
        base_PV = torch.log_softmax(self._base_PV.float(), dim=-1)  # rounded values no longer sum to 1
        divergence_P = (base_PV.exp() * (base_PV - self._log_softmax())).sum(-1)
        return float(divergence_P.mean())

    @torch.no_grad()
    def _log_softmax(self) -> Tensor:
        return torch.log_softmax(self._policy.tree_logits(self._tree), dim=-1).cpu()


def sample_base_answers(sampler: Sampler, prompts: Sequence[tuple[int, ...]], *, seed: int) -> list[Sample]:
    """The base model's own answers to `prompts` (token ids), sampled at temperature 1."""
    sampler.use_adapter(None)
    requests = [SampleRequest(ids, 1, _ANSWER_TOKENS, 1.0, seed + number) for number, ids in enumerate(prompts)]
    rollouts = sampler.sample(requests)
    return [Sample(request.prompt_ids, answers[0].token_ids) for request, answers in zip(requests, rollouts, strict=True)]
