"""What a training step measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one step did."""

    step: int
    reward_mean: float | None
    """Mean reward of the scored rollouts, the human's answers not counted; None when nothing could be scored."""
    success: float | None
    """Share of scored rollouts with the full reward."""
    num_rollouts: int
    num_unscored: int
    num_demonstrations: int
    groups: Mapping[str, int]
    """Groups by fate."""
    entropy: float | None
    """Mean entropy behind the trained tokens, nats."""
    mismatch: float | None
    """Mean |trainer - sampler| log-probability of sampled tokens, nats."""
    truncated_weights: int
    members_left_out: int
    tree_tokens: int
    """Tokens computed in the training forward."""
    padded_tokens: int
    """Tokens that padded rows would have taken for the same members."""
    grad_norm: float | None
    """Before clipping; None when the step changed nothing."""
    kl: float | None
    """Forward KL to the base on general prompts, where it was measured."""


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """Metrics of a loss, to add up over micro-batches."""

    mismatch_sum: float
    """Sum of |l - l_sampler| over sampled tokens."""
    mismatch_tokens: int
    truncated_tokens: int
    """Sampled tokens whose importance weight was cut at 2."""
    members_left_out: int
    """Members left out because sampler and trainer disagree beyond rounding."""


@dataclass(slots=True)
class StepTotals:
    """Sums over the trees of one step."""

    mismatch: float = 0.0
    sampled_tokens: int = 0
    truncated: int = 0
    left_out: int = 0
    entropy: float = 0.0
    tokens: int = 0
    tree_tokens: int = 0
    padded_tokens: int = 0
    grad_norm: float | None = None

    def add(self, metrics: LossMetrics, entropy: float, tokens: int, tree_tokens: int, padded_tokens: int) -> None:
        self.mismatch += metrics.mismatch_sum
        self.sampled_tokens += metrics.mismatch_tokens
        self.truncated += metrics.truncated_tokens
        self.left_out += metrics.members_left_out
        self.entropy += entropy
        self.tokens += tokens
        self.tree_tokens += tree_tokens
        self.padded_tokens += padded_tokens
