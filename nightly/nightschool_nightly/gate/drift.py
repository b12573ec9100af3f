"""How far the policy has moved from the base model on prompts that have nothing to do with the tenant.

Forward KL(base || policy), exact over the vocabulary, on the base model's own answers to general prompts: the quantity that
forgetting follows (RL's Razor, arXiv 2509.04259).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nightschool_nightly.rollouts.engine import RolloutEngine
from nightschool_nightly.rollouts.sampler import Ask
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, pack_tree

PROMPTS = (
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
_ANSWER_TOKENS = 32


class GeneralKl:
    """Forward KL to the base model on fixed base-model answers."""

    def __init__(self, policy: Policy, samples: Sequence[Sample]) -> None:
        self._policy = policy
        self._tree = pack_tree(samples)
        with policy.base():
            self._base_PV = self._log_softmax().to(torch.bfloat16)

    @torch.no_grad()
    def __call__(self) -> float:
        """Nats per token, over every distinct position of the answers."""
        base_PV = torch.log_softmax(self._base_PV.float(), dim=-1)
        divergence_P = (base_PV.exp() * (base_PV - self._log_softmax())).sum(-1)
        return float(divergence_P.mean())

    @torch.no_grad()
    def _log_softmax(self) -> Tensor:
        return torch.log_softmax(self._policy.tree_logits(self._tree), dim=-1).cpu()


def sample_general(engine: RolloutEngine, prompts: Sequence[tuple[int, ...]], *, seed: int) -> list[Sample]:
    """The base model's own answers to the general prompts."""
    engine.use(None)
    asks = [Ask(ids, 1, _ANSWER_TOKENS, 1.0, seed + number) for number, ids in enumerate(prompts)]
    return [Sample(ask.prompt_ids, rollouts[0].token_ids) for ask, rollouts in zip(asks, engine.sample(asks), strict=True)]
