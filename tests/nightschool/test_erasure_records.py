"""Erasures in a real stream: the newest record of a subject counts, and only inside its tenant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nightschool import semconv
from nightschool.erasure import Erasure, hash_subject, request_erasure, stored_erasures
from nightschool.errors import RecordError
from nightschool.stream import Record, Stream, open_stream


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    with open_stream(f"sqlite:{tmp_path / 'stream.db'}", partitions=3) as stream:
        yield stream


def test_the_newest_word_on_a_subject_counts(stream: Stream) -> None:
    """An erasure that was taken back is not in force; one that was asked for again is."""
    anna, bob = (hash_subject("acme", name) for name in ("anna", "bob"))
    request_erasure(stream, "acme", [Erasure(anna, 1), Erasure(bob, 1)])
    request_erasure(stream, "acme", [Erasure(anna, 2, "none")])
    assert stored_erasures(stream, "acme") == {anna: Erasure(anna, 2, "none"), bob: Erasure(bob, 1)}
    request_erasure(stream, "acme", [Erasure(anna, 3)])
    assert stored_erasures(stream, "acme")[anna] == Erasure(anna, 3)
    assert stored_erasures(stream, "acme", before={0: 2}) == {anna: Erasure(anna, 1), bob: Erasure(bob, 1)}


def test_another_tenants_erasures_are_not_ours(stream: Stream) -> None:
    """Also when one tenant's name begins with another's; the same user has another hash there."""
    request_erasure(stream, "acme", [Erasure(hash_subject("acme", "anna"), 1)])
    assert stored_erasures(stream, "acm") == stored_erasures(stream, "acme-2") == {}
    assert hash_subject("acme", "anna") != hash_subject("acme-2", "anna")


def test_no_erasure_tells_whom(stream: Stream) -> None:
    """The record is keyed and filled with a hash; the pseudonym is in neither."""
    request_erasure(stream, "acme", [Erasure(hash_subject("acme", "anna"), 1)])
    (record,) = stream.read(semconv.TOPIC_ERASURE, 0, 0, 1)
    assert record.key == b"acme/" + hash_subject("acme", "anna").encode()
    assert b"anna" not in record.key + record.value


@pytest.mark.parametrize(
    "value", [b"", b"[]", b'{"subject_hash": 1, "requested_at": 2, "scope": "all"}', b"\xff", b'{"scope": "all"}']
)
def test_an_erasure_that_cannot_be_read_stops_everything(stream: Stream, value: bytes) -> None:
    """It may be about any user, so reading stops; another tenant is not affected."""
    stream.append(semconv.TOPIC_ERASURE, [Record(b"acme/x", value, {})])
    with pytest.raises(RecordError, match="is not an erasure"):
        stored_erasures(stream, "acme")
    assert stored_erasures(stream, "globex") == {}
