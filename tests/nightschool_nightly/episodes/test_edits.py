"""How much of an answer a human changed."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from nightschool.episode import EditFigures, Message, RecordedCall, TextPart
from nightschool.outcomes.record import Outcome
from nightschool_nightly.episodes import edits
from nightschool_nightly.episodes.edits import ANOTHER_CALL, edited_call, measure_edit, named_call


def call(span_id: str, answer: str, response_id: str | None = None) -> RecordedCall:
    return RecordedCall(span_id, (), Message("assistant", (TextPart(answer),)), response_id=response_id)


CALLS = [call("a" * 16, "first", "r-1"), call("b" * 16, "second", "r-2"), call("c" * 16, "second")]


def edit(original: str | None = None, **target: Any) -> Outcome:
    digest = hashlib.sha256(original.encode()).hexdigest() if original else None
    return Outcome(target or {"trace_id": "1" * 32}, "edit", final_text="x", original_sha256=digest)


@pytest.mark.parametrize(
    ("before", "after", "distance"),
    [
        ("kitten", "sitting", 3 / 7),
        ("kitten", "kitten", 0.0),
        ("", "", 0.0),
        ("abc", "", 1.0),
        ("abcd", "abcx", 0.25),
        ("line\r\nline  ", "\nline\nline", 0.0),
        ("café", "cafe\u0301", 0.0),
        ("Card", "card", 0.25),
    ],
)
def test_a_distance_is_edits_over_the_longer_text(before: str, after: str, distance: float) -> None:
    """Levenshtein distance over length; what a web form changes by itself is not an edit."""
    assert measure_edit(before, after) == EditFigures(distance)
    assert measure_edit(after, before) == EditFigures(distance)


def test_accepted_is_untouched_and_rewritten_is_half() -> None:
    """The two ends of the measure have names, and the middle has none."""
    said = {
        distance: (EditFigures(distance).accepted, EditFigures(distance).rewritten) for distance in (0.0, 0.01, 0.49, 0.5, 1.0)
    }
    assert said == {0.0: (True, False), 0.01: (False, False), 0.49: (False, False), 0.5: (False, True), 1.0: (False, True)}


def test_texts_too_long_to_compare_are_not_measured() -> None:
    """Two texts of two megabytes take too long to compare: unknown, not zero. A long and a short one do not."""
    long = "x" * (1 << 20)
    assert len(long) ** 2 > edits.MAX_CELLS
    assert measure_edit(long, long + "y") is None
    assert measure_edit(long, "x") == EditFigures(1 - 1 / (1 << 20))


def test_what_was_edited_is_what_the_outcome_names() -> None:
    """A response or a span names its call, a hash the answer that it is of; without either it is the last call."""
    assert edited_call(edit(), CALLS) is CALLS[2]
    assert edited_call(edit(response_id="r-1"), CALLS) is CALLS[0]
    assert edited_call(edit(trace_id="1" * 32, span_id="b" * 16), CALLS) is CALLS[1]
    assert edited_call(edit("first"), CALLS) is CALLS[0]
    assert edited_call(edit("second"), CALLS) is CALLS[2]
    assert edited_call(edit("third"), CALLS) is None
    assert edited_call(edit("first", response_id="r-2"), CALLS) is None
    assert edited_call(edit(response_id="r-9"), CALLS) is None


def test_a_target_names_a_call_or_the_whole() -> None:
    """A span that is no model call, such as the app's root span, means its trace; an unknown response no call here."""
    assert named_call({"response_id": "r-2"}, CALLS) == "b" * 16
    assert named_call({"response_id": "r-9"}, CALLS) == ANOTHER_CALL
    assert named_call({"trace_id": "1" * 32, "span_id": "f" * 16}, CALLS) is None
    assert named_call({"conversation_id": "c", "turn": 1}, CALLS) is None
