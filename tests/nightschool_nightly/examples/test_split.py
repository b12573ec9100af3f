"""Who trains and who tests, how many prompts one user may have, and which copy of a prompt counts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from nightschool.config.settings import NightConfig
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.examples.learned import NOTHING_LEARNED, Learned, hash_cluster
from nightschool_nightly.examples.pool import Row
from nightschool_nightly.examples.split import NoPlace, Places, is_held_out, largest_limit

FAIR = NightConfig()
TRAINS = [user for user in (f"u{n}" for n in range(2000)) if not is_held_out("acme", user, FAIR.holdout_share)]
TESTS = [user for user in (f"u{n}" for n in range(2000)) if is_held_out("acme", user, FAIR.holdout_share)]


def make(user: str, prompt: int) -> Row:
    """What decides about a user's prompt, which is a number."""
    return Row(f"{user}-{prompt}", "triage", user, str(prompt))


def give(
    examples: Sequence[Row], settings: NightConfig = FAIR, learned: Learned = NOTHING_LEARNED, night: str = "n"
) -> tuple[tuple[Row, ...], tuple[Row, ...], NoPlace]:
    left_out: NoPlace = {}
    train, holdout = Places("acme", settings, learned, night, left_out).give(examples)
    assert {one.id for one in (*train, *holdout)} | set(left_out) == {one.id for one in examples}
    assert len(train) + len(holdout) + len(left_out) == len(examples)
    return train, holdout, left_out


def trained_by(examples: Iterable[Row]) -> Learned:
    examples = list(examples)
    return Learned(
        prompts=frozenset(one.prompt for one in examples),
        clusters=frozenset(hash_cluster("acme", one.cluster) for one in examples),
    )


# --- sides --------------------------------------------------------------------------------------------------------------
def test_who_ever_trained_never_tests() -> None:
    """A larger share of testers takes them from users who never trained; a smaller one makes testers train for good."""
    users = [make(f"u{n}", n) for n in range(300)]
    learned, tested = trained_by(()), dict[float, set[str]]()
    for share in (0.25, 0.5, 0.25):
        train, holdout, _ = give(users, replace(FAIR, holdout_share=share), learned)
        tested[share] = {one.cluster for one in holdout}
        assert not {hash_cluster("acme", one.cluster) for one in holdout} & learned.clusters
        learned = trained_by(one for one in users if hash_cluster("acme", one.cluster) in learned.clusters or one in train)
        users += [make(f"new{n}-{share}", 1000 + n + int(100_000 * share)) for n in range(100)]
    assert len(tested[0.5]) > 20


def test_a_prompt_that_trained_never_tests() -> None:
    """Also on a later night and by another user: to answer it shows that it was learned by heart."""
    before = make(TRAINS[0], 7)
    train, holdout, left_out = give([make(TESTS[0], 7), make(TESTS[1], 8)], learned=trained_by([before]))
    assert (train, [one.cluster for one in holdout]) == ((), [TESTS[1]])
    assert left_out == {f"{TESTS[0]}-7": DropReason.TRAINED_PROMPT}


def test_a_prompt_is_on_one_side_by_its_own_hash() -> None:
    """What users of both sides sent goes to one of them, about a quarter of it to those who test."""
    sent = [make(user, n) for n, users in enumerate(zip(TRAINS, TESTS, strict=False)) for user in users]
    train, holdout, left_out = give(sent, replace(FAIR, max_share_per_user=1.0))
    prompts = [{one.prompt for one in side} for side in (train, holdout)]
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == len(sent) // 2
    assert 0.15 < len(prompts[1]) / (len(sent) // 2) < 0.35
    assert set(left_out.values()) == {DropReason.DUPLICATE}


# --- shares and copies --------------------------------------------------------------------------------------------------
def test_a_user_who_repeats_everybody_takes_nothing_away() -> None:
    """The share is capped before copies are looked for: 100 repeated prompts once cost the night all but 5 of them."""
    users = [*TRAINS[:75], *TESTS[:25]]
    honest = [make(user, n) for n, user in enumerate(users)]
    copies = [make(TRAINS[99], n) for n in range(100)]
    train, holdout, left_out = give(honest + copies)
    assert len(train) + len(holdout) == 100
    assert len({one.cluster for one in train} - {TRAINS[99]}) >= 73 and len(holdout) >= 22
    assert Counter(one.cluster for one in train)[TRAINS[99]] <= 3
    assert Counter(left_out.values())[DropReason.USER_SHARE] >= 90


def test_nobody_has_more_than_the_share_of_what_is_left() -> None:
    """On both sides, whatever the users bring, and on what remains after the cap: 5% once left one user with 33%."""
    numbers = random.Random(1)
    for trial in range(20):
        users = [*numbers.sample(TRAINS, 80), *numbers.sample(TESTS, 30)]
        sent = [make(user, 1000 * n + k) for n, user in enumerate(users) for k in range(numbers.choice((1, 1, 2, 5, 60)))]
        room = replace(FAIR, steps=5, prompts_per_step=numbers.choice((4, 16, 64)))
        for side in give(sent, room, night=str(trial))[:2]:
            most = Counter(one.cluster for one in side).most_common(1)[0][1]
            assert side and most <= max(1, 0.05 * len(side))


@pytest.mark.parametrize(
    ("sizes", "share", "room", "limit"),
    [
        ([100] + [1] * 10, 0.5, None, 10),  # 10 of 20
        ([100] + [1] * 100, 0.05, None, 5),  # 5 of 105
        ([10] * 40, 0.05, None, 10),
        ([10] * 40, 0.05, 100, 5),
        ([10] * 20, 0.05, None, 10),
        ([10] * 5, 0.05, None, 10),  # with five users nobody can stay within 5%; twice an equal part is 40%
        ([100, 1, 1], 0.05, None, 4),
        ([7], 0.05, None, 7),
        ([], 0.05, None, 1),
    ],
)
def test_the_limit_is_the_largest_that_fits(sizes: list[int], share: float, room: int | None, limit: int) -> None:
    """No larger one leaves every user within the share; a night of few users is not cut down to a prompt each."""
    assert largest_limit(Counter({f"u{n}": size for n, size in enumerate(sizes)}), share, room) == limit


def test_a_prompt_of_many_users_counts_once_for_the_one_with_the_fewest() -> None:
    """The others keep what else they sent, and stay users of their own."""
    few, many = TRAINS[:2]
    train, _, left_out = give([make(few, 1), make(many, 1), make(many, 2), make(many, 3)], replace(FAIR, max_share_per_user=1.0))
    assert {one.id for one in train} == {f"{few}-1", f"{many}-2", f"{many}-3"}
    assert left_out == {f"{many}-1": DropReason.DUPLICATE}


def test_held_out_prompts_have_a_limit_and_the_rest_is_counted() -> None:
    """Every policy answers each of them, so a large day would test for hours; which ones is drawn by the night."""
    sent = [make(user, n) for n, user in enumerate(TESTS[:60])]
    _, holdout, left_out = give(sent, replace(FAIR, max_holdout=25))
    assert len(holdout) == 25 and Counter(left_out.values()) == {DropReason.NOT_SAMPLED: 35}
    assert {one.id for one in give(sent, replace(FAIR, max_holdout=25), night="m")[1]} != {one.id for one in holdout}


def test_places_do_not_depend_on_the_order_of_arrival() -> None:
    """The same examples in any order get the same places."""
    numbers = random.Random(2)
    sent = [make(numbers.choice(TRAINS[:40] + TESTS[:40]), n // 2) for n in range(400)]
    sent = list({one.id: one for one in sent}.values())
    assert give(sent) == give(sorted(sent, key=lambda one: one.id, reverse=True))
