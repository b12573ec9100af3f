"""The gate: the statistics by hand, by simulation, and every reason to refuse."""

from __future__ import annotations

import math
import re
import tracemalloc
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import pytest

from nightschool_nightly.gate import gate
from nightschool_nightly.gate.gate import Comparison, Decision, compare, decide

SIMULATIONS = 300


def comparison(**changes: object) -> Comparison:
    plain: dict[str, object] = {
        "against": "base",
        "num_prompts": 50,
        "num_users": 30,
        "num_unscored": 0,
        "before": 0.3,
        "after": 0.6,
        "difference": 0.3,
        "lower_bound": 0.2,
        "interval95": (0.18, 0.42),
    }
    return Comparison(**{**plain, **changes})  # type: ignore[arg-type]


def decision(*comparisons: Comparison, kl: float = 0.1) -> Decision:
    return decide(comparisons or (comparison(),), min_holdout=20, kl=kl, kl_budget=0.5)


# --- comparing ----------------------------------------------------------------------------------------------------------
def test_means_are_over_pairs() -> None:
    """Before, after and their difference are plain means over the prompts that both policies have a score for."""
    found = compare("base", [0.0, 1.0, None, 0.5], [1.0, 1.0, 1.0, None], ["a", "b", "c", "d"], confidence=0.95, seed=0)
    assert (found.num_prompts, found.num_users, found.num_unscored) == (2, 2, 2)
    assert (found.unscored_before, found.unscored_after) == (1, 1)
    assert (found.before, found.after, found.difference) == (0.5, 1.0, 0.5)


def test_an_equal_gain_everywhere_is_certain() -> None:
    """When every prompt gains the same, every resample says the same."""
    found = compare("base", [0.25] * 12, [0.75] * 12, [f"u{n}" for n in range(12)], confidence=0.95, seed=0)
    assert found.difference == found.lower_bound == 0.5
    assert found.interval95 == (0.5, 0.5)


def test_users_are_resampled_not_prompts() -> None:
    """A hundred prompts of one user weigh as one user: the bound is as wide as the same gains of single prompts."""
    after = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    users = [f"u{n}" for n in range(6)]
    single = compare("base", [0.0] * 6, after, users, confidence=0.95, seed=0)
    repeated = compare("base", [0.0] * 600, after * 100, users * 100, confidence=0.95, seed=0)
    assert (repeated.lower_bound, repeated.interval95) == (single.lower_bound, single.interval95)
    apart = compare("base", [0.0] * 600, after * 100, [f"u{n}" for n in range(600)], confidence=0.95, seed=0)
    assert apart.lower_bound > single.lower_bound


def test_users_weigh_by_their_prompts() -> None:
    """The estimate is the mean over prompts; a resample's mean is too, so a busy user counts for more."""
    found = compare("base", [0.0] * 10, [1.0] * 9 + [0.0], ["busy"] * 9 + ["calm"], confidence=0.95, seed=0)
    assert found.difference == 0.9
    assert found.interval95 == (0.0, 1.0)


def test_the_bound_is_close_to_students() -> None:
    """With many users of one prompt each it is the textbook one-sided bound."""
    gains = np.random.default_rng(7).normal(0.2, 0.5, 80)
    found = compare("base", [0.0] * 80, gains.tolist(), [f"u{n}" for n in range(80)], confidence=0.95, seed=0)
    error = gains.std(ddof=1) / math.sqrt(80)
    assert found.lower_bound == pytest.approx(gains.mean() - 1.664 * error, abs=0.05 * error)
    assert found.interval95 == pytest.approx((gains.mean() - 1.99 * error, gains.mean() + 1.99 * error), abs=0.1 * error)


def test_a_comparison_can_be_repeated() -> None:
    """The same rewards and seed give the same bounds; another seed moves them only a little."""
    before, after, users = [0.0] * 20, [1.0, 0.0] * 10, [f"u{n % 10}" for n in range(20)]
    one, same, other = (compare("base", before, after, users, confidence=0.95, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.difference == other.difference and one.lower_bound == pytest.approx(other.lower_bound, abs=0.05)


def test_nothing_scored_proves_nothing() -> None:
    """Without a single pair the bound is minus infinity."""
    found = compare("base", [None, 1.0], [1.0, None], ["a", "b"], confidence=0.95, seed=0)
    assert (found.num_prompts, found.num_unscored, found.lower_bound) == (0, 2, -math.inf)
    assert not decision(found).accepted


def test_lists_that_do_not_fit_are_an_error() -> None:
    """Rewards are paired by place: a missing one must never shift the others."""
    with pytest.raises(ValueError, match="zip"):
        compare("base", [1.0], [1.0, 0.0], ["a", "b"], confidence=0.95, seed=0)


# --- what is left out ---------------------------------------------------------------------------------------------------
def test_leaving_out_never_favors_the_candidate() -> None:
    """In the bound that decides, an answer of the candidate's that nobody could score counts as no reward at all."""
    users = [f"u{n}" for n in range(40)]
    before, after = [0.0] * 20 + [1.0] * 20, [0.0] * 20 + [1.0] * 20
    honest = compare("base", before, after, users, confidence=0.95, seed=0)
    better: list[float | None] = [1.0] * 4 + after[4:]
    for silent in range(4):
        better[-1 - silent] = None
        found = compare("base", before, better, users, confidence=0.95, seed=0)
        worst = compare("base", before, [value or 0.0 for value in better], users, confidence=0.95, seed=0)
        assert found.lower_bound == worst.lower_bound
        assert (found.num_prompts, found.num_unscored, found.unscored_after) == (39 - silent, 1 + silent, 1 + silent)
    assert honest.lower_bound == 0.0 > found.lower_bound
    assert found.difference > 0  # the means are of what is known


def test_the_others_unscored_answers_are_neither_won_nor_lost() -> None:
    """What is unknown of the policy that serves does not depend on the candidate: it is left out and counted."""
    users = [f"u{n}" for n in range(10)]
    found = compare("base", [None, *[0.0] * 9], [1.0] * 10, users, confidence=0.95, seed=0)
    assert (found.difference, found.lower_bound, found.unscored_before, found.unscored_after) == (1.0, 1.0, 1, 0)


@pytest.mark.parametrize(("unscored", "enough"), [(5, True), (6, False)])
def test_with_too_many_unscored_answers_nothing_is_decided(unscored: int, enough: bool) -> None:
    """At most a tenth of the prompts may be left out, whoever left them unscored; both sides are named."""
    found = decision(comparison(num_prompts=55 - unscored, num_unscored=unscored, unscored_before=1, unscored_after=unscored))
    assert found.accepted is enough
    if not enough:
        assert found.reasons == (
            "not enough evidence against base: 6 of 55 held-out prompts have an unscored answer "
            "(base 1, candidate 6); at most 10% may",
        )


# --- in the long run ----------------------------------------------------------------------------------------------------
Draw = Callable[[np.random.Generator, int, int], tuple[Sequence[float], Sequence[float]]]


def right_or_wrong(generator: np.random.Generator, users: int, each: int) -> tuple[Sequence[float], Sequence[float]]:
    """Rewards of 0 and 1 of two equally good policies; users differ in how often they are served right."""
    chance = np.repeat(generator.uniform(0.2, 0.8, users), each)
    before, after = (generator.random((2, users * each)) < chance).astype(float)
    return before.tolist(), after.tolist()


def by_taste(generator: np.random.Generator, users: int, each: int) -> tuple[Sequence[float], Sequence[float]]:
    """Fine-grained rewards; each user prefers one or the other policy, on the whole neither."""
    taste = np.repeat(generator.normal(0, 0.3, users), each)
    return [0.0] * (users * each), (taste + generator.normal(0, 0.3, users * each)).tolist()


@pytest.mark.parametrize(("users", "each"), [(5, 5), (10, 3), (30, 1)])
@pytest.mark.parametrize("draw", [right_or_wrong, by_taste])
def test_no_difference_is_rejected(draw: Draw, users: int, each: int) -> None:
    """Of 300 nights that changed nothing, at least 93% are rejected, with few users too."""
    generator = np.random.default_rng(11)
    names = [f"u{n // each}" for n in range(users * each)]
    accepted = 0
    for seed in range(SIMULATIONS):
        before, after = draw(generator, users, each)
        found = compare("base", before, after, names, confidence=0.95, seed=seed)
        accepted += decide([found], min_holdout=20, kl=0.0, kl_budget=0.5).accepted
    assert accepted <= 0.07 * SIMULATIONS


def test_a_real_gain_is_accepted() -> None:
    """From 0.3 to 0.8 on 40 prompts of 20 users is nearly always seen."""
    generator = np.random.default_rng(11)
    accepted = 0
    for seed in range(50):
        before, after = (generator.random(40) < 0.3).astype(float), (generator.random(40) < 0.8).astype(float)
        found = compare("base", before.tolist(), after.tolist(), [f"u{n // 2}" for n in range(40)], confidence=0.95, seed=seed)
        accepted += decision(found).accepted
    assert accepted >= 49


def test_more_confidence_asks_for_more() -> None:
    """The bound falls as the confidence grows, about as the normal distribution says."""
    gains = np.random.default_rng(3).normal(0.1, 0.5, 100).tolist()
    users = [f"u{n}" for n in range(100)]
    at = {c: compare("base", [0.0] * 100, gains, users, confidence=c, seed=0).lower_bound for c in (0.5, 0.9, 0.99)}
    assert at[0.5] > at[0.9] > at[0.99]
    ratio = NormalDist().inv_cdf(0.99) / NormalDist().inv_cdf(0.9)
    assert (at[0.5] - at[0.99]) / (at[0.5] - at[0.9]) == pytest.approx(ratio, rel=0.1)


# --- deciding -----------------------------------------------------------------------------------------------------------
def test_better_than_both_is_accepted() -> None:
    """No reason against, whatever it is compared with."""
    found = decision(comparison(), comparison(against="release"))
    assert found.accepted and found.reasons == () and len(found.comparisons) == 2


@pytest.mark.parametrize(
    ("changes", "kl", "reason"),
    [
        ({"lower_bound": 0.0}, 0.1, r"not better than base: \+0.300, lower bound \+0.000 is not above 0"),
        ({"lower_bound": -0.01, "difference": -0.001}, 0.1, r"not better than base: -0.001, lower bound -0.010"),
        ({"lower_bound": math.nan}, 0.1, "not better than base"),
        ({"num_prompts": 19}, 0.1, "19 scored held-out prompts against base, at least 20 are needed"),
        ({"num_users": 4}, 0.1, "4 held-out users against base, at least 5 are needed"),
        ({}, 0.51, "KL to the base model on general prompts is 0.510 nats per token, the budget is 0.500"),
        ({}, math.nan, "KL to the base model on general prompts is nan"),
        ({}, math.inf, "KL to the base model on general prompts is inf"),
    ],
)
def test_one_reason_is_enough_to_refuse(changes: dict[str, object], kl: float, reason: str) -> None:
    """Every guardrail alone keeps the candidate out, and says its metrics; NaN is never good enough."""
    found = decision(comparison(), comparison(**changes), kl=kl)
    assert not found.accepted
    (only,) = found.reasons
    assert re.match(reason, only)


def test_every_reason_is_told() -> None:
    """A reader sees all that is wrong at once."""
    found = decision(comparison(lower_bound=-1.0), comparison(against="release", num_prompts=3), kl=2.0)
    assert len(found.reasons) == 3


def test_without_a_comparison_nothing_is_accepted() -> None:
    """A candidate that was compared with nothing is not better than anything."""
    found = decide([], min_holdout=20, kl=0.0, kl_budget=0.5)
    assert not found.accepted and found.reasons == ("compared with no other policy",)


def test_the_gain_over_the_release_is_the_headline() -> None:
    """A person compares with what served before: the release, in whatever place it is, else the base."""
    base, release = comparison(difference=0.5), comparison(against="release", difference=0.1)
    assert decision(base).headline == base
    assert decision(base, release).headline == decision(release, base).headline == release


def test_a_decision_keeps_the_kl_it_decided_on() -> None:
    """The report and the release's manifest show the very number that was held against the budget."""
    assert decision(kl=0.3).kl == 0.3 and decision(kl=0.3).accepted
    assert decision(kl=0.6).kl == 0.6 and not decision(kl=0.6).accepted


def test_the_budget_itself_may_be_spent() -> None:
    """The limit is allowed, what lies above it is not."""
    assert decision(kl=0.5).accepted


def test_the_bootstrap_does_not_grow_with_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """25,000 users take less than 100 MB: as many as draw at once what a whole bootstrap took in gigabytes."""
    monkeypatch.setattr(gate, "_RESAMPLES", 1000)  # a tenth, for time: all at once they were 600 MB
    users = [f"u{n}" for n in range(25_000)]
    rewards = [float(n % 3 == 0) for n in range(len(users))]
    tracemalloc.start()
    found = compare("base", [0.0] * len(users), rewards, users, confidence=0.95, seed=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert 0.32 < found.lower_bound < found.difference < 0.34


def test_how_many_are_drawn_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same bound to the last bit, in one piece or in many."""
    users = [f"u{n % 30}" for n in range(90)]
    before, after = [n % 5 / 5 for n in range(90)], [n % 7 / 7 for n in range(90)]
    whole = compare("base", before, after, users, confidence=0.95, seed=3)
    for size in (1, 30, 30 * 7, 10**9):
        monkeypatch.setattr(gate, "_MOST_DRAWN", size)
        assert compare("base", before, after, users, confidence=0.95, seed=3) == whole
