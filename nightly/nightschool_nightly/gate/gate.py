"""Step 7 of a night: is the candidate better, on held-out prompts, than what serves now and than the base model?

Paired by prompt and clustered by user: the bootstrap draws users and not prompts, because one user's prompts are not
independent (Miller 2024, arXiv 2411.00640). A prompt that either policy's answer leaves unscored is left out of the
means, and counted. A candidate must not win by what is left out: in the bound that decides, a prompt whose answer by the
candidate alone is unscored counts as if it had got no reward, and with too many unscored ones nothing is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from nightschool_nightly.gate.evaluation import Contender

# With so many the bound's own noise is about 1% of its distance from the mean: far below what a night can show.
_RESAMPLES = 10_000
# Users drawn at a time, over all resamples: 24 MB, whatever the number of users.
_MOST_DRAWN = 2**20
# With three users all of them are better by chance one time in eight, and no resample of them says otherwise.
_MIN_USERS = 5
# Answers are not unscored by chance. One in ten can move a mean by a tenth, and a night's gain is often no more.
_MAX_UNSCORED = 0.1


@dataclass(frozen=True, slots=True)
class Comparison:
    """The candidate against one other policy. Written as JSON under these names in a release's manifest."""

    against: str
    """The other policy: "base" or "release"."""
    num_prompts: int
    """Prompts that both policies have a score for; everything below is over these."""
    num_users: int
    num_unscored: int
    """Prompts left out because an answer is unscored."""
    before: float
    """Mean reward of the other policy."""
    after: float
    """Mean reward of the candidate."""
    difference: float
    """Mean of the paired differences, candidate minus other."""
    lower_bound: float
    """One-sided bootstrap bound at the configured confidence."""
    interval95: tuple[float, float]
    """Two-sided bootstrap interval, for the report; nothing is decided by it."""
    unscored_before: int = 0
    """Prompts with an unscored answer of the other policy."""
    unscored_after: int = 0
    """Prompts with an unscored answer of the candidate."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate says, and why."""

    accepted: bool
    reasons: tuple[str, ...]
    """Every reason against; empty when accepted."""
    comparisons: tuple[Comparison, ...]
    """With the base model first, then with the release if there is one."""
    kl: float
    """Forward KL(base || candidate) on general prompts, nats per token."""

    @property
    def headline(self) -> Comparison:
        """The gain a person reads first: over the release that serves, or over the base model where there is none."""
        by_policy = {comparison.against: comparison for comparison in self.comparisons}
        return by_policy[Contender.RELEASE if Contender.RELEASE in by_policy else Contender.BASE]


def compare(
    against: str,
    before: Sequence[float | None],
    after: Sequence[float | None],
    users: Sequence[str],
    *,
    confidence: float,
    seed: int,
) -> Comparison:
    """Paired comparison of rewards prompt by prompt, with a bootstrap over users.

    `before`, `after` and `users` have one entry for each prompt, in the same order; `ValueError` when they do not.
    `confidence` is that of the one-sided lower bound. Without a single pair the bound is minus infinity: nothing is
    shown.
    """
    rows = list(zip(before, after, users, strict=True))
    pairs = [(a, b, user) for a, b, user in rows if a is not None and b is not None]
    # The worst that the candidate's unknown answers may have been. The other's do not depend on the candidate.
    lost = [(a, 0.0, user) for a, b, user in rows if a is not None and b is None]
    unscored_before, unscored_after = sum(a is None for a in before), sum(b is None for b in after)
    if not pairs:
        nothing = (0, 0, len(rows), 0.0, 0.0, 0.0, float("-inf"), (float("-inf"), float("inf")))
        return Comparison(against, *nothing, unscored_before, unscored_after)
    differences = _by_user(pairs)
    [low, high, bound] = _bounds(differences, [0.025, 0.975, 1 - confidence], seed)
    if lost:
        [bound] = _bounds(_by_user(pairs + lost), [1 - confidence], seed)
    return Comparison(
        against=against,
        num_prompts=len(pairs),
        num_users=len(differences[0]),
        num_unscored=len(rows) - len(pairs),
        before=float(np.mean([a for a, *_ in pairs])),
        after=float(np.mean([b for _, b, _ in pairs])),
        difference=float(differences[0].sum() / differences[1].sum()),
        lower_bound=bound,
        interval95=(low, high),
        unscored_before=unscored_before,
        unscored_after=unscored_after,
    )


def _by_user(pairs: Sequence[tuple[float, float, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Each user's sum of differences and number of prompts, in the order of their names."""
    place = {user: number for number, user in enumerate(sorted({user for *_, user in pairs}))}
    sums, counts = np.zeros(len(place)), np.zeros(len(place))
    for a, b, user in pairs:
        sums[place[user]] += b - a
        counts[place[user]] += 1
    return sums, counts


def _bounds(differences: tuple[np.ndarray, np.ndarray], chances: Sequence[float], seed: int) -> list[float]:
    """Bootstrap quantiles of the mean difference, each with its tail widened for the number of users."""
    num_users = len(differences[0])
    tails = [_tail(chance, num_users) if chance <= 0.5 else 1 - _tail(1 - chance, num_users) for chance in chances]
    return [float(bound) for bound in np.quantile(_bootstrap_means(*differences, seed), tails)]


def _bootstrap_means(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Means of the paired differences over resamples of users, [_RESAMPLES].

    `sums` and `counts` hold each user's sum of differences and number of prompts: a resample's mean is over prompts,
    as the estimate is. A few resamples are drawn at a time, from one stream of random numbers: how many changes nothing.
    """
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _MOST_DRAWN // len(sums))
    parts = []
    for first in range(0, _RESAMPLES, at_a_time):
        drawn = generator.integers(0, len(sums), size=(min(at_a_time, _RESAMPLES - first), len(sums)))
        parts.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(parts)


def _tail(chance: float, num_users: int) -> float:
    """The quantile of the bootstrap that leaves out `chance`: expanded percentiles (Hesterberg 2015, arXiv 1411.5279).

    A bootstrap over few users is too narrow: with 10 users the plain percentile accepts a candidate that is no better
    in 8% of nights where 5% is promised.
    """
    freedom = num_users - 1
    if freedom == 0:
        return 0.0
    z = NormalDist().inv_cdf(chance)
    # The quantile of Student's t from that of the normal distribution: Cornish-Fisher expansion to the second order.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(t * math.sqrt(num_users / freedom))


def decide(comparisons: Sequence[Comparison], *, min_holdout: int, kl: float, kl_budget: float) -> Decision:
    """Accept if the lower bound against every other policy is above zero and no limit is broken. NaN never passes."""
    reasons = [] if comparisons else ["compared with no other policy"]
    for comparison in comparisons:
        total = comparison.num_prompts + comparison.num_unscored
        if comparison.num_unscored > _MAX_UNSCORED * total:
            reasons.append(
                f"not enough evidence against {comparison.against}: {comparison.num_unscored} of {total} held-out prompts have an "
                f"unscored answer ({comparison.against} {comparison.unscored_before}, candidate {comparison.unscored_after}); "
                f"at most {_MAX_UNSCORED:.0%} may"
            )
        if comparison.num_prompts < min_holdout:
            reasons.append(
                f"{comparison.num_prompts} scored held-out prompts against {comparison.against}, at least {min_holdout} are needed"
            )
        elif comparison.num_users < _MIN_USERS:
            reasons.append(
                f"{comparison.num_users} held-out users against {comparison.against}, at least {_MIN_USERS} are needed"
            )
        elif not comparison.lower_bound > 0:
            reasons.append(
                f"not better than {comparison.against}: {comparison.difference:+.3f}, lower bound {comparison.lower_bound:+.3f} is not above 0"
            )
    if not kl <= kl_budget:
        reasons.append(f"KL to the base model on general prompts is {kl:.3f} nats per token, the budget is {kl_budget:.3f}")
    return Decision(not reasons, tuple(reasons), tuple(comparisons), kl)
