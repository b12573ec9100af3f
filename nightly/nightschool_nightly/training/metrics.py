"""What a training step measured: plain records without tensors. A night's folder and progress need no trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one step did. Written as JSON under these names, in checkpoints and in a night's evaluation."""

    step: int
    """Counted from 0."""
    reward_mean: float | None
    """Mean reward of the scored rollouts, the human's answers not counted; None when nothing could be scored."""
    success: float | None
    """Share of scored rollouts with the full reward."""
    num_rollouts: int
    num_unscored: int
    num_demonstrations: int
    """Human answers that joined a group."""
    groups: Mapping[str, int]
    """How many groups had each fate (`advantage.GroupFate`)."""
    entropy: float | None
    """Mean entropy of the distributions behind the trained tokens, nats."""
    mismatch: float | None
    """Mean |trainer - sampler| log-probability of sampled tokens, nats."""
    truncated_weights: int
    """Sampled tokens whose importance weight was cut (`loss.policy_loss`)."""
    members_left_out: int
    """Members left out because sampler and trainer disagree beyond rounding."""
    tree_tokens: int
    """Tokens computed in the training forward pass."""
    padded_tokens: int
    """Tokens that padded rows would have taken for the same members."""
    grad_norm: float | None
    """Before clipping; None when the step changed nothing."""
    kl: float | None
    """Forward KL to the base model on the gate's general prompts, nats per token; None where it was not measured."""
    general_kl: float | None = None
    """The same on the general prompts in the step's loss, before its update; None without a KL term."""
    mismatch_p99: float | None = None
    """The 99th percentile of what `mismatch` is the mean of."""

    def with_kl(self, kl: float) -> StepMetrics:
        """The same metrics with the KL that was measured after the step."""
        return replace(self, kl=kl)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> StepMetrics:
        """From what `to_json` made; `TypeError` when a name is missing or unknown."""
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class LossMetrics:
    """What one evaluation of the loss measured, as sums: they add up over micro-batches."""

    mismatches: tuple[float, ...]
    """|l - l_sampler| of every sampled token, nats."""
    truncated_tokens: int
    """Sampled tokens whose importance weight was cut at 2."""
    members_left_out: int
    """Members left out because sampler and trainer disagree beyond rounding."""
    left_out_tokens: int
    """Their tokens."""

    @property
    def mismatch_sum(self) -> float:
        """Sum of |l - l_sampler| over sampled tokens."""
        return math.fsum(self.mismatches)

    @property
    def mismatch_tokens(self) -> int:
        """Sampled tokens."""
        return len(self.mismatches)


@dataclass(slots=True)
class StepTotals:
    """Sums over the trees of one step; all zero when the step changed nothing."""

    mismatches: list[float] = field(default_factory=list)
    truncated: int = 0
    left_out: int = 0
    left_out_tokens: int = 0
    entropy: float = 0.0
    tokens: int = 0
    tree_tokens: int = 0
    padded_tokens: int = 0
    grad_norm: float | None = None
    general_kl: float | None = None

    def add(self, loss: LossMetrics, *, entropy: float, tokens: int, tree_tokens: int, padded_tokens: int) -> None:
        """Add one tree with `tokens` trained tokens, whose entropies sum to `entropy`."""
        self.mismatches += loss.mismatches
        self.truncated += loss.truncated_tokens
        self.left_out += loss.members_left_out
        self.left_out_tokens += loss.left_out_tokens
        self.entropy += entropy
        self.tokens += tokens
        self.tree_tokens += tree_tokens
        self.padded_tokens += padded_tokens
