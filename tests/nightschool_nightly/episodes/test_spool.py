"""The spool gives back what was put in, from its own file and from adopted ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightschool_nightly.episodes.spool import Spool

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(PLAIN, max_size=20))
def test_what_is_put_is_got(values: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """In any order, while more is written, whatever the size."""
    spool = Spool(tmp_path_factory.mktemp("spool") / "contents")
    places = []
    for value in values:
        places.append(spool.put(value))
        assert spool.get(places[0]) == values[0]
    assert [spool.get(place) for place in reversed(places)] == values[::-1]
    spool.close()


def test_a_value_larger_than_one_read(tmp_path: Path) -> None:
    """A long conversation with thousands of log-probabilities comes back whole, exact to the last bit."""
    spool = Spool(tmp_path / "contents")
    large = {"text": "\U0001f600" * 100_000, "logprobs": [math.log(number / 7) for number in range(1, 20_000)]}
    before, place, after = spool.put("before"), spool.put(large), spool.put("after")
    assert (spool.get(before), spool.get(place), spool.get(after)) == ("before", large, "after")
    spool.close()


def test_an_adopted_spool_is_read_at_its_base(tmp_path: Path) -> None:
    """Places of several spools never meet, and no file stays behind."""
    first = Spool(tmp_path / "first")
    mine = [first.put(f"first {number}") for number in range(100)]
    for name in ("second", "third"):
        other = Spool(tmp_path / name)
        theirs = [other.put(f"{name} {number}") for number in range(100)]
        other.keep()
        base = first.adopt(tmp_path / name)
        assert [first.get(base + place) for place in theirs] == [f"{name} {number}" for number in range(100)]
        mine.append(first.put(f"after {name}"))
    assert [first.get(place) for place in mine] == [*(f"first {n}" for n in range(100)), "after second", "after third"]
    first.close()
    assert list(tmp_path.iterdir()) == []
