"""night.json: read back whole, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from nightschool.errors import NightError
from nightschool_nightly.freeze.manifest import FrozenRange, NightManifest


def test_a_manifest_survives_its_file(make_manifest: Callable[..., NightManifest]) -> None:
    """What is read back is equal and has the same digest."""
    manifest = make_manifest(settings={"learning_rate": 1e-4, "seed": 3, "stop": ["a"]})
    again = NightManifest.from_json(manifest.to_json())
    assert again == manifest and again.digest == manifest.digest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tenant", "globex"),
        ("dtype", "bfloat16"),
        ("settings", {"seed": 9}),
        ("rubrics", {}),
        ("digest", "0" * 64),
        ("schema", 2),
    ],
)
def test_an_altered_manifest_is_refused(name: str, value: object, make_manifest: Callable[..., NightManifest]) -> None:
    """A night is never resumed on another input than it froze."""
    raw = json.loads(make_manifest().to_json()) | {name: value}
    with pytest.raises(NightError, match="does not match its own digest: it was altered"):
        NightManifest.from_json(json.dumps(raw))


def test_the_machine_is_recorded_but_is_not_the_night(make_manifest: Callable[..., NightManifest]) -> None:
    """Threads and KV cache are kept for a resumed night; the same input on another machine is the same night."""
    plain, sized = make_manifest(), make_manifest(threads=6, kv_cache_bytes=3 << 30)
    assert plain.digest == sized.digest
    again = NightManifest.from_json(sized.to_json())
    assert (again.threads, again.kv_cache_bytes) == (6, 3 << 30)


def test_a_manifest_from_before_the_machine_was_recorded_is_read(make_manifest: Callable[..., NightManifest]) -> None:
    """A night that an older version froze can be resumed; what it does not say is 0."""
    raw = json.loads(make_manifest(threads=6, kv_cache_bytes=5).to_json())
    del raw["threads"], raw["kv_cache_bytes"]
    again = NightManifest.from_json(json.dumps(raw))
    assert (again.threads, again.kv_cache_bytes) == (0, 0)


def test_the_old_name_of_who_it_learned_from_is_read(make_manifest: Callable[..., NightManifest]) -> None:
    """Releases filed by an older version still tell `nightschool forget` whom they learned from."""
    raw = json.loads(make_manifest(learned_from=("mark",)).to_json())
    raw["learnt_from"] = raw.pop("learned_from")
    assert NightManifest.from_json(json.dumps(raw)).learned_from == ("mark",)


def test_an_altered_range_is_refused(make_manifest: Callable[..., NightManifest]) -> None:
    """A manifest with one offset more is not the night that was frozen."""
    raw = json.loads(make_manifest().to_json())
    raw["ranges"][0]["end"] += 1
    with pytest.raises(NightError, match="it was altered"):
        NightManifest.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    "change",
    ["", "[]", '"x"', "3", "{}", {"ranges": 5}, {"pointer": {"epoch": -1}}, {"pointer": {"stable": "../x"}}, {"extra": 1}],
)
def test_what_is_no_manifest_is_refused(change: str | dict[str, Any], make_manifest: Callable[..., NightManifest]) -> None:
    """A damaged file is a night error that says what to do, whatever is wrong with it."""
    text = change if isinstance(change, str) else json.dumps(json.loads(make_manifest().to_json()) | change)
    with pytest.raises(NightError, match=r"night.json cannot be read .* start a new night without --resume"):
        NightManifest.from_json(text)


def test_new_records_are_those_after_the_last_night(make_manifest: Callable[..., NightManifest]) -> None:
    """Records that a night reads again are not new ones."""
    old = FrozenRange("ns.otlp_spans", "id", 0, 0, 7, 7)
    assert not make_manifest(ranges=(old,)).has_new_records
    assert make_manifest(ranges=(old, FrozenRange("ns.outcomes", "id", 0, 0, 6, 7))).has_new_records
    assert not make_manifest(ranges=()).has_new_records
