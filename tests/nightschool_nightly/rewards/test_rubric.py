"""Rubrics: how items add up, what a digest covers, and what a wrong file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightschool.errors import RubricError
from nightschool_nightly.rewards.rubric import load_rubric, parse_rubric

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
    assert parse_rubric(RUBRIC).score(answer, {"queue": "fraud"}).reward == pytest.approx(reward)


def test_full_marks_are_exactly_one() -> None:
    """Weights that add up only approximately still give exactly 1 when everything passes: it is counted as a success."""
    items = "".join(f'[[items]]\nname = "i{n}"\nkind = "check"\ncheck = "length"\nweight = 0.{n}\n' for n in range(1, 8))
    assert parse_rubric('task = "t"\n' + items).score("x", {}).reward == 1.0


def test_an_unknown_outcome_leaves_the_answer_unscored() -> None:
    """Without the human's choice there is no reward, not even 0, and the item says None."""
    score = parse_rubric(RUBRIC).score("weather", {"mood": "good"})
    assert score.reward is None
    assert score.items == {"right-queue": None, "short": False, "known-queue": False}


def test_outcomes_may_be_compared_without_case() -> None:
    """`ignore_case` folds both sides; without it case counts."""
    assert parse_rubric(RUBRIC).score("fraud", {"queue": "Fraud"}).items["right-queue"] is False
    folded = RUBRIC.replace('outcome = "queue"', 'outcome = "queue"\nignore_case = true')
    assert parse_rubric(folded).score("fraud", {"queue": "Fraud"}).items["right-queue"] is True


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
            r"item 1 \('a'\): kind is 'vibes'; allowed are 'check' and 'outcome'",
        ),
        ('task = "t"\nitems = [{name = "a"}]', r"kind is None; allowed are 'check' and 'outcome'"),
        ('task = "t"\nitems = [{name = "a", kind = ["check"]}]', r"kind is \['check'\]; allowed are 'check' and 'outcome'"),
        (
            'task = "t"\nitems = [{name = "a", kind = "check", check = "nice"}]',
            r"item 1 \('a'\): check is 'nice'; allowed are exact",
        ),
        ('task = "t"\nitems = [{name = "a", kind = "outcome"}]', "outcome must be the name of an outcome"),
        (
            'task = "t"\nitems = [{name = "a", kind = "outcome", outcome = "q", fold = 1}]',
            "unknown option 'fold'; allowed are ignore_case, outcome",
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
    """The files we ship load, and need an outcome."""
    for path in sorted(Path(__file__).parents[3].glob("examples/helpdesk/*.toml")):
        if "[[items]]" in path.read_text():
            assert load_rubric(path).outcome_names
