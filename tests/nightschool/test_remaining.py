"""What is left, from what was measured."""

from __future__ import annotations

import pytest

from nightschool.remaining import Remaining, in_words


def test_what_is_left_follows_the_measured_parts() -> None:
    """Each part that took 30 s makes the rest as many times 30 s, and nothing is left after the last."""
    now = [100.0]
    remaining = Remaining(4, lambda: now[0])
    said = []
    for _ in range(4):
        now[0] += 30
        said.append(remaining.part_done())
    assert said == ["2 min", "60 s", "30 s", "0 s"]


def test_a_machine_that_became_slower_is_believed() -> None:
    """Only the last parts count: after ten slow ones the fast ones before say nothing."""
    now = [0.0]
    remaining = Remaining(130, lambda: now[0])
    for seconds in [1] * 100 + [60] * 10:
        now[0] += seconds
        said = remaining.part_done()
    assert said == "20 min"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (7.2, "7 s"),
        (42, "40 s"),
        (88, "90 s"),
        (91, "2 min"),
        (1269, "21 min"),
        (3600, "1 h"),
        (4700, "1 h 20 min"),
    ],
)
def test_durations_are_rounded_as_a_person_would(seconds: float, words: str) -> None:
    """An estimate is not told to the second."""
    assert in_words(seconds) == words
