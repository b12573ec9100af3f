"""Step 7 of a night: is the candidate better, on held-out prompts, than what serves now and than the base model?

Paired by prompt, clustered by user: users are resampled, not prompts, because one user's prompts are not independent
(Miller 2024, arXiv 2411.00640). A prompt that any policy's answer leaves unscored is left out for all, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """The candidate against one other policy."""

    against: str
    num_prompts: int
    num_users: int
    num_unscored: int
    before: float
    """Mean reward of the other policy."""
    after: float
    """Mean reward of the candidate."""
    difference: float
    lower_bound: float
    """One-sided bootstrap bound at the configured confidence."""
    interval95: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate says, and why."""

    accepted: bool
    reasons: tuple[str, ...]
    """Every reason against; empty when accepted."""
    comparisons: tuple[Comparison, ...]


def compare(
    against: str,
    before: Sequence[float | None],
    after: Sequence[float | None],
    users: Sequence[str],
    *,
    confidence: float,
    seed: int,
) -> Comparison:
    """Paired comparison of rewards prompt by prompt, with a bootstrap over users."""
    pairs = [(a, b, user) for a, b, user in zip(before, after, users, strict=True) if a is not None and b is not None]
    unscored = len(users) - len(pairs)
    if not pairs:
        return Comparison(against, 0, 0, unscored, 0.0, 0.0, 0.0, float("-inf"), (float("-inf"), float("inf")))
    names = sorted({user for *_, user in pairs})
    place = {user: number for number, user in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for a, b, user in pairs:
        sums[place[user]] += b - a
        counts[place[user]] += 1
    means = _bootstrap_means(sums, counts, seed)
    low, high, bound = np.quantile(means, [0.025, 0.975, 1 - confidence])
    return Comparison(
        against=against,
        num_prompts=len(pairs),
        num_users=len(names),
        num_unscored=unscored,
        before=float(np.mean([a for a, *_ in pairs])),
        after=float(np.mean([b for _, b, _ in pairs])),
        difference=float(sums.sum() / counts.sum()),
        lower_bound=float(bound),
        interval95=(float(low), float(high)),
    )


def _bootstrap_means(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Means of the paired differences over resamples of users [RESAMPLES]."""
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_RESAMPLES)
    means: np.ndarray = (weights @ sums) / (weights @ counts)
    return means


def decide(comparisons: Sequence[Comparison], *, min_holdout: int, kl: float, kl_budget: float) -> Decision:
    """Accept only if the lower bound against every other policy lies above zero and no guardrail is broken."""
    reasons = []
    for comparison in comparisons:
        if comparison.num_prompts < min_holdout:
            reasons.append(
                f"{comparison.num_prompts} scored held-out prompts against {comparison.against}, at least {min_holdout} are needed"
            )
        elif not comparison.lower_bound > 0:
            reasons.append(
                f"not better than {comparison.against}: {comparison.difference:+.3f}, lower bound {comparison.lower_bound:+.3f} is not above 0"
            )
    if not kl <= kl_budget:
        reasons.append(f"KL to the base model on general prompts is {kl:.3f} nats per token, the budget is {kl_budget:.3f}")
    return Decision(not reasons, tuple(reasons), tuple(comparisons))
