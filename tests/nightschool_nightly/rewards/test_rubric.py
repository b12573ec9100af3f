"""Rubrics: how items add up, what a digest covers, and what a wrong file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nightschool.errors import RubricError
from nightschool_nightly.rewards.items import Answer
from nightschool_nightly.rewards.rubric import KINDS, Rubric, Score, load_rubric, parse_rubric

RUBRIC = """
task = "triage"
[[items]]
name = "right-queue"
kind = "outcome"
outcome = "queue"
weight = 3.0
[[items]]
name = "short"
kind = "check"
check = "length"
max_chars = 6
[[items]]
name = "known-queue"
kind = "check"
check = "one_of"
values = ["card", "fraud", "loans-and-mortgages"]
weight = 1
hard = true
"""


@dataclass(frozen=True)
class Asked:
    """What a rubric sees of a prompt."""

    references: Mapping[str, str] = field(default_factory=dict)
    message: str = "a message"


def score(rubric: Rubric, text: str, references: Mapping[str, str]) -> Score:
    return rubric.score(Asked(references), Answer(text))


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("fraud", 1.0),
        (" fraud ", 1.0),
        ("card", 2 / 5),  # known and short, not right
        ("loans-and-mortgages", 1 / 5),
        ("rain", 0.0),  # a hard item: short alone is worth nothing
    ],
)
def test_the_reward_is_the_share_of_the_weights(answer: str, reward: float) -> None:
    """Passed weights over all weights, and 0 when a hard item fails."""
    assert score(parse_rubric(RUBRIC), answer, {"queue": "fraud"}).reward == pytest.approx(reward)


def test_full_marks_are_exactly_one() -> None:
    """Weights whose sum is rounded still give exactly 1 when everything passes: it is counted as a success."""
    items = "".join(f'[[items]]\nname = "i{n}"\nkind = "check"\ncheck = "length"\nweight = 0.{n}\n' for n in range(1, 8))
    assert score(parse_rubric('task = "t"\n' + items), "x", {}).reward == 1.0


def test_an_unknown_outcome_leaves_the_answer_unscored() -> None:
    """Without the human's choice there is no reward, not even 0, and the item says None."""
    found = score(parse_rubric(RUBRIC), "weather", {"mood": "good"})
    assert found.reward is None
    assert found.items == {"right-queue": None, "short": False, "known-queue": False}


@pytest.mark.parametrize(("is_whole", "scored"), [(False, False), (True, True)])
def test_an_answer_that_the_night_cut_short_is_unscored(is_whole: bool, scored: bool) -> None:
    """Stopped where production would have gone on, no item can decide."""
    found = parse_rubric(RUBRIC).score(Asked({"queue": "fraud"}), Answer("fraud", is_whole=is_whole))
    assert found.reward == (1.0 if scored else None)
    assert found.items == dict.fromkeys(("right-queue", "short", "known-queue"), True if scored else None)


@pytest.mark.parametrize(
    ("beginning", "references", "reward"),
    [
        ("The customer says", {"queue": "fraud"}, 0.0),  # no known queue begins so, and that item is hard
        ("fra", {"queue": "fraud"}, None),
        ("card", {"queue": "fraud"}, None),  # not right, but short and a known queue, if it ends here
        ("card", {}, None),
    ],
)
def test_a_beginning_that_cannot_become_right_has_failed(
    beginning: str, references: Mapping[str, str], reward: float | None
) -> None:
    """An answer that goes on and on is 0 as soon as nothing could save it, and unscored as long as something could."""
    found = parse_rubric(RUBRIC).score(Asked(references), Answer(beginning, is_whole=False))
    assert found.reward == reward
    assert found.items["right-queue"] == (False if references and not "fraud".startswith(beginning) else None)


def test_outcomes_may_be_compared_without_case() -> None:
    """`ignore_case` folds both sides; without it case counts."""
    assert score(parse_rubric(RUBRIC), "fraud", {"queue": "Fraud"}).items["right-queue"] is False
    folded = RUBRIC.replace('outcome = "queue"', 'outcome = "queue"\nignore_case = true')
    assert score(parse_rubric(folded), "fraud", {"queue": "Fraud"}).items["right-queue"] is True


def test_outcome_names_are_what_the_rubric_needs() -> None:
    """Each outcome once, in order of the items."""
    more = (
        RUBRIC
        + '[[items]]\nname = "a"\nkind = "outcome"\noutcome = "edit"\n[[items]]\nname = "b"\nkind = "outcome"\noutcome = "queue"'
    )
    assert parse_rubric(more).outcome_names == ("queue", "edit")


def test_comments_layout_and_order_of_keys_do_not_change_the_digest() -> None:
    """The digest names the meaning."""
    other = RUBRIC.replace('name = "short"\nkind = "check"', "# a comment\nkind   =   'check'\n\nname = 'short'")
    assert other != RUBRIC
    assert parse_rubric(other).digest == parse_rubric(RUBRIC).digest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("weight = 3.0", "weight = 3.5"),
        ("hard = true", "hard = false"),
        ('"card", "fraud"', '"fraud", "card", "x"'),
        ("max_chars = 6", "max_chars = 7"),
        ('task = "triage"', 'task = "reply"'),
        ('name = "short"', 'name = "brief"'),
        ('outcome = "queue"', 'outcome = "queue"\nignore_case = true'),
    ],
)
def test_any_other_meaning_is_another_digest(old: str, new: str) -> None:
    """What could change a reward, or what it is called, changes the digest."""
    assert old in RUBRIC
    assert parse_rubric(RUBRIC.replace(old, new)).digest != parse_rubric(RUBRIC).digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task = ", "not valid TOML"),
        ('task = "t"\ncolour = 1', "unknown key 'colour'; allowed are task and"),
        ('items = [{name = "a"}]', r"task is None; it must be the name the app gives"),
        ('task = ""\nitems = [{name = "a"}]', r"task is ''; it must be"),
        ('task = "t"', r"needs at least one \[\[items\]\] table"),
        ('task = "t"\nitems = []', r"needs at least one \[\[items\]\] table"),
        ('task = "t"\nitems = [3]', r"item 1 is 3; it must be an \[\[items\]\] table"),
        ('task = "t"\nitems = [{kind = "check"}]', "item 1 has no name"),
        (
            'task = "t"\nitems = [{name = "a", kind = "vibes"}]',
            r"item 1 \('a'\): kind is 'vibes'; allowed are check, outcome",
        ),
        ('task = "t"\nitems = [{name = "a"}]', r"kind is missing; allowed are check, outcome"),
        ('task = "t"\nitems = [{name = "a", kind = ["check"]}]', r"kind is \['check'\]; allowed are check, outcome"),
        (
            'task = "t"\nitems = [{name = "a", kind = "check", check = "nice"}]',
            r"item 1 \('a'\): check is 'nice'; allowed are exact",
        ),
        ('task = "t"\nitems = [{name = "a", kind = "outcome"}]', "outcome is missing; it must be the name that the app gives"),
        (
            'task = "t"\nitems = [{name = "a", kind = "outcome", outcome = ""}]',
            "outcome is ''; it must be the name that the app gives",
        ),
        (
            'task = "t"\nitems = [{name = "a", kind = "outcome", outcome = "q", ignore_case = 1}]',
            "ignore_case is 1; it must be true or false",
        ),
        (
            'task = "t"\nitems = [{name = "a", kind = "outcome", outcome = "q", fold = 1}]',
            "kind 'outcome' has the unknown option 'fold'; allowed are ignore_case, outcome",
        ),
        (
            'task = "t"\nitems = [{name = "a", kind = "outcome", outcome = "q", weight = 0}]',
            "weight is 0; it must be a number above 0",
        ),
        (
            'task = "t"\nitems = [{name = "a", kind = "outcome", outcome = "q", weight = nan}]',
            "weight is nan; it must be a number above 0",
        ),
        ('task = "t"\nitems = [{name = "a", kind = "outcome", outcome = "q", weight = inf}]', "weight is inf"),
        ('task = "t"\nitems = [{name = "a", kind = "outcome", outcome = "q", weight = true}]', "weight is True"),
        ('task = "t"\nitems = [{name = "a", kind = "outcome", outcome = "q", hard = 1}]', "hard is 1; it must be true or false"),
        (RUBRIC.replace('"short"', '"known-queue"'), "two items are named 'known-queue'; names must differ"),
    ],
)
def test_a_wrong_rubric_says_what_to_change(text: str, message: str, tmp_path: Path) -> None:
    """Every mistake names the file, the item, what was got and what is allowed."""
    path = tmp_path / "triage.toml"
    path.write_text(text)
    with pytest.raises(RubricError, match=message) as raised:
        load_rubric(path)
    assert str(raised.value).startswith(f"rubric {path}: ")


def test_a_rubric_that_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    """A missing file and one that is not text are rubric errors."""
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for name in ("missing.toml", "binary.toml"):
        with pytest.raises(RubricError, match=f"{name} cannot be read"):
            load_rubric(tmp_path / name)


def test_the_rubrics_of_the_demo_are_good() -> None:
    """The files we ship load, read an outcome, and can be passed."""
    folder = Path(__file__).parents[3] / "examples" / "helpdesk"
    rubrics = {path.name: load_rubric(path) for path in sorted(folder.glob("*.toml"))}
    assert set(rubrics) == {"bank.toml", "telecom.toml"}
    for rubric in rubrics.values():
        assert rubric.task == "triage" and rubric.outcome_names == ("queue",)
        assert score(rubric, "Fees", {"queue": "fees"}).items["right-queue"] is True


def test_every_kind_refuses_an_option_it_does_not_know() -> None:
    """A misspelled option is never ignored, whatever the kind of the item."""
    needed = {"check": 'check = "exact", value = "a"', "outcome": 'outcome = "q"'}
    assert set(needed) == set(KINDS)
    for kind, options in needed.items():
        assert parse_rubric(f'task = "t"\nitems = [{{name = "a", kind = "{kind}", {options}}}]').items
        with pytest.raises(RubricError, match="has the unknown option 'ignorecase'; allowed are ignore_case"):
            parse_rubric(f'task = "t"\nitems = [{{name = "a", kind = "{kind}", {options}, ignorecase = true}}]')
