"""How far the policy has moved from the base model on prompts that have nothing to do with the tenant.

The forward KL of `training.divergence`, at every position of the base model's own answers to the general prompts of
the gate, which no night trains with.

Shapes: P positions that predict something, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nightschool_nightly.training.divergence import forward_kl, keep_prediction
from nightschool_nightly.training.head import rows_at_a_time
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, pack_tree


class Drift:
    """Forward KL to the base model on fixed base-model answers."""

    def __init__(self, policy: Policy, samples: Sequence[Sample]) -> None:
        """Compute and keep what the base model predicts at every position of `samples`."""
        self._policy, self._tree = policy, pack_tree(samples)
        self._num_rows = rows_at_a_time(policy.vocabulary)
        with torch.no_grad(), policy.base():
            hidden_parts = torch.split(policy.tree_hidden(self._tree), self._num_rows)
            self._base = [keep_prediction(policy.logits(hidden_PH)) for hidden_PH in hidden_parts]

    @torch.no_grad()
    def measure(self) -> float:
        """The KL of the policy as it is now: nats per token, the mean over every distinct position of the answers."""
        hidden_parts = torch.split(self._policy.tree_hidden(self._tree), self._num_rows)
        parts = zip(self._base, hidden_parts, strict=True)
        return float(torch.cat([forward_kl(base, self._policy.logits(hidden_PH)) for base, hidden_PH in parts]).mean())
