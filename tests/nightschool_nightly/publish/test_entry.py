"""What a night leaves in the ledger, and what the next one takes from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nightschool.erasure import hash_subject
from nightschool.errors import NightError
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.ledger import in_lineage
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.examples.learned import Learned, hash_cluster, hash_evidence, hash_prompt
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.publish.entry import enter_night, has_left_over, ledger_entry, refuse_overtaken

RELEASE, OTHER_RELEASE = "a" * 64, "b" * 64
Manifest, MakeExample = Callable[..., NightManifest], Callable[..., Example]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def selection(make_example: MakeExample) -> Selection:
    anna, bob = make_example("e1", cluster="anna", prompt_ids=(1,)), make_example("e2", cluster="bob", prompt_ids=(2,))
    return Selection((anna,), (bob,), {DropReason.NOT_SAMPLED: 2, DropReason.USER_SHARE: 1, DropReason.SEEN: 9}, 5)


def test_a_release_is_made_of_what_was_sampled(make_manifest: Manifest, selection: Selection) -> None:
    """Its night names every example, the prompts and users that trained, and the users that tested; none can be read."""
    manifest = make_manifest(ledger="f" * 64)
    entry = ledger_entry(manifest, selection, end="published", release=RELEASE)
    (anna,), (bob,) = selection.train, selection.holdout
    assert (entry.night, entry.previous, entry.release, entry.num_left) == (manifest.digest, "f" * 64, RELEASE, 3)
    assert [(part.topic, part.end) for part in entry.read] == [(part.topic, part.end) for part in manifest.ranges]
    assert set(entry.examples) == {hash_evidence(one.id, one.references) for one in (anna, bob)}
    assert entry.prompts == (hash_prompt("acme", anna),)
    assert (entry.trained, entry.tested) == ((hash_cluster("acme", "anna"),), (hash_cluster("acme", "bob"),))
    assert hash_subject("acme", "anna").startswith(entry.trained[0]) and b"anna" not in entry.to_bytes()


def test_of_a_rejected_night_only_what_it_read_is_kept(make_manifest: Manifest, selection: Selection) -> None:
    """Nothing was made of what it sampled: that stays news, and nobody is named."""
    entry = ledger_entry(make_manifest(), selection, end="rejected", release=None)
    assert entry.read and not (entry.examples or entry.prompts or entry.trained or entry.tested)


def test_learned_is_what_the_lineage_of_the_release_sampled(
    registry: Registry, make_manifest: Manifest, selection: Selection
) -> None:
    """Also of the releases it is built on; nothing once the pointer is back at the base model."""
    enter_night(registry, make_manifest(), selection, end="published", release=RELEASE)
    nights = registry.ledger("acme").entries()
    following = make_manifest(ledger=nights[-1].digest, pointer=Pointer(1, RELEASE))
    enter_night(registry, following, replace(selection, train=selection.holdout), end="published", release="b" * 64)
    nights = registry.ledger("acme").entries()
    assert Learned.by(nights, RELEASE).clusters == {hash_cluster("acme", "anna")}
    assert Learned.by(nights, "b" * 64).clusters == {hash_cluster("acme", name) for name in ("anna", "bob")}
    assert Learned.by(nights, None) == Learned()


def test_what_is_left_over_is_a_reason_for_a_night_only_after_a_published_one(
    registry: Registry, make_manifest: Manifest, selection: Selection
) -> None:
    """On the same evidence, a night after a rejected one would only try the gate again with another seed."""
    enter_night(registry, make_manifest(), selection, end="published", release=RELEASE)
    (first,) = registry.ledger("acme").entries()
    assert not has_left_over(registry, make_manifest())
    assert not has_left_over(registry, make_manifest(ledger=first.digest))  # its release never came to serve
    second = make_manifest(ledger=first.digest, pointer=Pointer(1, RELEASE))
    assert has_left_over(registry, second)
    enter_night(registry, second, selection, end="rejected", release=None)
    assert not has_left_over(
        registry, make_manifest(ledger=registry.ledger("acme").entries()[-1].digest, pointer=Pointer(1, RELEASE))
    )


def test_a_night_that_starts_over_begins_a_new_lineage(registry: Registry, make_manifest: Manifest, selection: Selection) -> None:
    """Its release is made of that night alone: the nights behind the release that served then are not behind it."""
    enter_night(registry, make_manifest(), selection, end="published", release=RELEASE)
    ledger = registry.ledger("acme")
    (first,) = ledger.entries()
    following = make_manifest(ledger=first.digest, pointer=Pointer(1, RELEASE), starts_over=True)
    enter_night(registry, following, selection, end="published", release=OTHER_RELEASE)
    assert [entry.night for entry in in_lineage(ledger.entries(), OTHER_RELEASE)] == [following.digest]


def test_a_night_that_another_one_overtook_is_not_resumed(
    registry: Registry, make_manifest: Manifest, selection: Selection
) -> None:
    """Both read the same records. A night that is in the ledger itself may write the rest of its files."""
    manifest = make_manifest()
    refuse_overtaken(registry, manifest)
    enter_night(registry, manifest, selection, end="rejected", release=None)
    refuse_overtaken(registry, manifest)
    other = make_manifest(settings={"seed": 1})
    with pytest.raises(NightError, match=f"night {manifest.digest[:12]} ended after night {other.digest[:12]} was frozen"):
        refuse_overtaken(registry, other)
