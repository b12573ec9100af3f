"""The ledger of a tenant's nights, on a real folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nightschool.errors import RegistryError
from nightschool.registry.folder import Registry
from nightschool.registry.ledger import Ledger, LedgerEntry, ReadRange, in_lineage

FIRST = LedgerEntry(
    night="1" * 64,
    previous="",
    end="published",
    release="a" * 64,
    parent=None,
    read=(ReadRange("ns.otlp_spans", "id-1", 0, 5),),
    as_of_ms=3,
    frozen_at_ms=4,
    num_left=7,
    examples=("e1",),
    prompts=("p1",),
    trained=("u1",),
    tested=("u2",),
)
SECOND = replace(FIRST, night="2" * 64, previous=FIRST.digest, end="rejected", release=None, examples=(), trained=())


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Registry(tmp_path).ledger("acme")


def test_nights_come_back_in_order_and_whole(ledger: Ledger) -> None:
    """What was filed is read back to the last field, up to any entry; before the first there is nothing."""
    assert ledger.entries() == () and ledger.up_to("") == ()
    ledger.add(FIRST)
    ledger.add(SECOND)
    assert ledger.entries() == (FIRST, SECOND)
    assert ledger.up_to(FIRST.digest) == (FIRST,) and ledger.up_to("") == ()
    assert sorted(path.name for path in ledger.folder.glob("*.json")) == ["1.json", "2.json"]


def test_a_night_is_filed_once(ledger: Ledger) -> None:
    """A night that was killed after it was filed, and resumed, changes nothing."""
    ledger.add(FIRST)
    ledger.add(FIRST)
    assert ledger.entries() == (FIRST,)


def test_of_two_nights_from_the_same_point_one_is_filed(ledger: Ledger) -> None:
    """The second read what the first has read: it is refused, and the ledger is as it was."""
    ledger.add(FIRST)
    with pytest.raises(RegistryError, match="another night of this tenant ended since night 333333333333 began"):
        ledger.add(replace(FIRST, night="3" * 64))
    assert ledger.entries() == (FIRST,)


def test_an_entry_that_was_changed_or_is_missing_is_an_error(ledger: Ledger) -> None:
    """What was read and learned decides who may test, so a damaged ledger stops the night and names the file."""
    ledger.add(FIRST)
    ledger.add(SECOND)
    path = ledger.folder / "1.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"u1"', b'"u9"'))
    with pytest.raises(RegistryError, match=r"2\.json does not follow the entry before it"):
        ledger.entries()
    path.write_bytes(whole[:-1])
    with pytest.raises(RegistryError, match=r"1\.json is no entry of a night"):
        ledger.entries()
    path.unlink()
    with pytest.raises(RegistryError, match="none of the number 1"):
        ledger.entries()
    with pytest.raises(RegistryError, match="has no night ffffffffffff"):
        Ledger(ledger.folder.parent / "empty").up_to("f" * 64)


def test_only_nights_behind_a_release_are_in_its_lineage() -> None:
    """After the pointer was moved back, what the abandoned release learned from is in no weights that serve."""
    child = replace(FIRST, night="3" * 64, release="b" * 64, parent="a" * 64)
    other = replace(FIRST, night="4" * 64, release="c" * 64, parent="a" * 64)
    nights = (FIRST, SECOND, child, other)
    assert in_lineage(nights, "c" * 64) == (FIRST, other)
    assert in_lineage(nights, "b" * 64) == (FIRST, child)
    assert in_lineage(nights, None) == () and in_lineage(nights, "d" * 64) == ()
