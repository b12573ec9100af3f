"""How much of an answer a human changed: measured here, from both texts, never taken from a client."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence

from rapidfuzz.distance import Levenshtein

from nightschool.episode import EditFigures, RecordedCall
from nightschool.outcomes.record import Outcome

# Cells of the comparison: characters of one text times those of the other. The largest takes about a second, because
# the algorithm computes 64 cells in one step.
MAX_CELLS = 1 << 34
ANOTHER_CALL = ""
"""Stands for the span id of a call that is not in the episode."""


def measure_edit(original: str, final: str) -> EditFigures | None:
    """Levenshtein distance in characters over the length of the longer text; None when they are too long to compare.

    What a web form changes by itself is not an edit: line ends, white space around the text, the Unicode form of
    accents.
    """
    before, after = _plain(original), _plain(final)
    if len(before) * len(after) > MAX_CELLS:
        return None
    return EditFigures(distance=Levenshtein.normalized_distance(before, after))


def edited_call(outcome: Outcome, calls: Sequence[RecordedCall]) -> RecordedCall | None:
    """The call whose answer was edited; None when no answer has the hash of the original.

    Of the calls that the outcome may mean, those whose answer has the hash of the original, if it gives one; of these
    the last.
    """
    about = named_call(outcome.target, calls)
    candidates = calls if about is None else [call for call in calls if call.span_id == about]
    if outcome.original_sha256 is not None:
        candidates = [call for call in candidates if outcome.original_sha256 in _hashes(call.answer.text)]
    return candidates[-1] if candidates else None


def named_call(target: Mapping[str, object], calls: Sequence[RecordedCall]) -> str | None:
    """Span id of the call that a target names; None when it names no call, `ANOTHER_CALL` for an unknown response."""
    if "response_id" in target:
        return next((call.span_id for call in calls if call.response_id == target["response_id"]), ANOTHER_CALL)
    if "span_id" in target:
        return next((call.span_id for call in calls if call.span_id == target["span_id"]), None)
    return None


def _hashes(text: str) -> set[str]:
    return {hashlib.sha256(spelling.encode("utf-8", "surrogatepass")).hexdigest() for spelling in (text, text.strip())}


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").strip())
