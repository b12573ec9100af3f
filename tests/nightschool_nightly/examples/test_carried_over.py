"""What earlier nights have read: what the release learned from is left out, the rest is still news."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nightschool.config.settings import NightConfig
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.examples.learned import NOTHING_LEARNED, Learned, hash_evidence, hash_id, hash_prompt
from nightschool_nightly.examples.select import NoPlace, select_examples
from nightschool_nightly.freeze.serving_defaults import ServingDefaults
from tests.nightschool_nightly.examples.test_select import RUBRIC, Letters, call, episode, outcome

WHOLE = NightConfig(max_share_per_user=1.0)
SMALL = replace(WHOLE, steps=3, prompts_per_step=4)


def select(
    built: Sequence[BuiltEpisode],
    *,
    settings: NightConfig = WHOLE,
    learned: Learned = NOTHING_LEARNED,
    night: str = "n",
    left_out: NoPlace | None = None,
) -> Selection:
    return select_examples(
        built,
        tenant="acme",
        settings=settings,
        rubrics={name: replace(RUBRIC, task=name) for name in ("triage", "reply")},
        tokenizer=Letters(),
        serving=ServingDefaults(2048),
        learned=learned,
        night=night,
        left_out=left_out,
    )


def learned_from(*selections: Selection) -> Learned:
    """What the ledger says after published nights with these selections."""
    sampled = [one for selection in selections for one in (*selection.train, *selection.holdout)]
    return Learned(
        examples=frozenset(hash_evidence(one.id, one.references) for one in sampled),
        ids=frozenset(hash_id(one.id) for one in sampled),
        prompts=frozenset(hash_prompt("acme", one) for selection in selections for one in selection.train),
    )


def ids(selection: Selection) -> set[str]:
    return {example.id for example in (*selection.train, *selection.holdout)}


def test_a_night_has_as_many_prompts_as_its_steps_sample_and_counts_the_rest() -> None:
    """No chosen prompt vanishes: it is sampled, or left for a later night under a name of its own."""
    left_out: NoPlace = {}
    selection = select([episode(number) for number in range(1, 101)], settings=SMALL, left_out=left_out)
    assert len(selection.train) == 12
    assert selection.dropped == {DropReason.NOT_SAMPLED: selection.num_left}
    assert len(selection.train) + len(selection.holdout) + selection.num_left == 100
    assert {*left_out.values()} == {DropReason.NOT_SAMPLED} and len(left_out) == selection.num_left


def test_which_prompts_are_sampled_is_drawn_by_the_night_alone() -> None:
    """The order of the episodes changes nothing, another night draws others, and every task has its share."""
    built = [episode(number, task="triage" if number % 4 else "reply") for number in range(1, 201)]
    first, again, other = (
        select(built, settings=SMALL),
        select(built[::-1], settings=SMALL),
        select(built, settings=SMALL, night="m"),
    )
    assert first == again and {one.id for one in first.train} != {one.id for one in other.train}
    assert sum(example.task == "reply" for example in first.train) == 3


def test_what_no_release_learned_from_is_news_to_the_next_night() -> None:
    """Night by night every prompt of a day is sampled once, and then nothing of it is left."""
    built = [episode(number) for number in range(1, 41)]
    learned, sampled, nights, old = NOTHING_LEARNED, list[Example](), list[Selection](), False
    for _ in range(4):
        selection = select([replace(item, is_new=not old) for item in built], settings=SMALL, learned=learned)
        assert selection.num_new_episodes == (0 if old else 40)
        assert selection.num_carried_over == (len(ids(selection)) if old else 0)
        assert not ids(selection) & {example.id for example in sampled}
        sampled += [*selection.train, *selection.holdout]
        nights.append(selection)
        learned, old = learned_from(*nights), True
    assert len(sampled) == 40 and not ids(select([replace(item, is_new=False) for item in built], learned=learned))


def test_what_a_rejected_night_sampled_is_news_to_the_next_one() -> None:
    """Nothing was made of it: the next night has the same examples, and says that they are carried over."""
    built = [episode(number) for number in range(1, 9)]
    first, second = select(built), select([replace(item, is_new=False) for item in built])
    assert ids(first) == ids(second) and (second.num_new_episodes, second.num_carried_over) == (0, 8)
    assert second.dropped == {}


def test_a_correction_is_news_even_when_only_a_rejected_night_has_read_it() -> None:
    """The release learned from another answer than the one that counts now."""
    learned = learned_from(select([episode(1)]))
    assert not ids(select([episode(1, new=False)], learned=learned))
    assert len(ids(select([episode(1, new=False, outcomes=[outcome("loan")])], learned=learned))) == 1


def test_a_copy_of_a_prompt_that_trained_is_not_carried_over() -> None:
    """It was left out as a copy when it was new; the release has learned from the other one. New, it counts again."""
    first, copy = (episode(number, subject="user-2", calls=(call(1),)) for number in (1, 2))
    learned = learned_from(select([first]))
    assert learned.prompts, "user-2 trains"
    assert select([replace(copy, is_new=False)], learned=learned).dropped == {DropReason.SEEN: 1}
    assert len(ids(select([copy], learned=learned))) == 1


def test_what_an_earlier_night_left_out_is_not_counted_again() -> None:
    """Tonight's counts are of tonight: what is old and cannot be used is seen, and nothing else."""
    old = [
        episode(1, new=False, task="unknown"),
        episode(2, new=False, outcomes=[outcome(name="mood")]),
        episode(3, new=False),
        episode(4, new=False, calls=(call(3),)),
    ]
    assert select(old).dropped == {DropReason.SEEN: 3}
