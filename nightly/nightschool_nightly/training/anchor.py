"""The KL term of a night's loss: what the policy answers to general prompts stays what the base model answers.

    loss = policy loss  +  weight * mean over positions of KL(base || policy)

A tenant's prompts teach the task, and nothing in them says that other prompts are to be answered as before: without
this term a router of messages soon answers every question with the name of a queue. At night's start the base model
answers the chosen general prompts once. Every step takes a few of these answers along in its own token tree and pulls
the policy's predictions at each of their positions back to the base model's. It costs the task nothing that the task
needs (docs/night.md has the figures): a prompt of the tenant and a general one are told apart by their texts.

Shapes: T positions of answers, H hidden size; P rows of a tree that predict something, as in `tree`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from nightschool_nightly.training.divergence import BasePrediction, forward_kl, join_predictions, keep_prediction
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, TokenTree, pack_tree


class Anchor:
    """Answers of the base model with what it predicted at every position of them."""

    def __init__(self, policy: Policy, samples: Sequence[Sample], *, per_step: int, seed: int) -> None:
        """Compute and keep what the base model predicts along `samples`; each step takes `per_step` of them."""
        self._policy, self._samples = policy, [sample for sample in samples if sample.completion_ids]
        self._per_step, self._seed = min(per_step, len(self._samples)), seed
        self._base = [self._predicted(sample) for sample in self._samples]

    def of_step(self, number: int) -> list[int]:
        """Which of the samples step `number` takes: every pass over all of them has an order of its own."""
        if not self._per_step:
            return []
        chosen: list[int] = []
        for place in range(number * self._per_step, (number + 1) * self._per_step):
            turn, at = divmod(place, len(self._samples))
            order = list(range(len(self._samples)))
            random.Random(f"{self._seed}/{turn}").shuffle(order)  # noqa: S311 -- an order that a night repeats, not a secret
            chosen.append(order[at])
        return list(dict.fromkeys(chosen))  # two passes may meet inside a step

    def samples(self, numbers: Sequence[int]) -> list[Sample]:
        """The samples of these numbers, to be packed into a step's tree."""
        return [self._samples[number] for number in numbers]

    def kl(self, numbers: Sequence[int], tree: TokenTree, first: int, hidden_PH: Tensor) -> Tensor:
        """Mean KL over the positions of the samples `numbers`, nats, with gradient.

        They are in `tree` one after the other, from its sample number `first` on; `hidden_PH` are the tree's predicting
        rows.
        """
        edges_N = torch.split(tree.edges_N, list(tree.lengths))
        rows_T = tree.edge_row_E[torch.cat([edges_N[first + place] for place in range(len(numbers))])]
        base = join_predictions([self._base[number] for number in numbers])
        return forward_kl(base, self._policy.logits(hidden_PH[rows_T.to(hidden_PH.device)])).mean()

    @torch.no_grad()
    def _predicted(self, sample: Sample) -> BasePrediction:
        tree = pack_tree([sample])
        with self._policy.base():
            hidden_PH = self._policy.tree_hidden(tree)
        return keep_prediction(self._policy.logits(hidden_PH))
