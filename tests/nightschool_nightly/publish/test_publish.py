"""Publishing a candidate into a real registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nightschool.errors import PointerConflict
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.release import NIGHT, REPORT, verify_release
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.gate.gate import Decision, compare
from nightschool_nightly.publish.publish import publish_release
from nightschool_nightly.training.policy import Policy

USERS = [f"u{n}" for n in range(10)]
GAIN = Decision(True, (), (compare("base", [0.0] * 10, [1.0] * 10, USERS, confidence=0.95, seed=0),), kl=0.125)

MakeCandidate = Callable[..., Path]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def make_candidate(tmp_path: Path, make_policy: Callable[..., Policy]) -> MakeCandidate:
    """Writes what a night leaves in its candidate folder."""

    def make(manifest: NightManifest, *, seed: int = 0) -> Path:
        folder = tmp_path / f"candidate-{seed}"
        make_policy(moved=0.2, seed=seed).save(folder)
        (folder / REPORT).write_text("<p>better</p>")
        (folder / NIGHT).write_text(manifest.to_json())
        return folder

    return make


Manifest = Callable[..., NightManifest]


def test_a_published_candidate_is_a_release_that_serving_accepts(
    registry: Registry, make_candidate: MakeCandidate, make_manifest: Manifest
) -> None:
    """It passes serving's own check, the pointer names it, and its manifest says where it came from."""
    manifest = make_manifest()
    digest = publish_release(registry, make_candidate(manifest), manifest, GAIN, enter=print)
    folder = registry.release_folder("acme", digest)
    release = verify_release(folder, tenant="acme", digest=digest, base_model=manifest.base_model, max_rank=16)
    assert registry.pointer("acme") == Pointer(epoch=1, stable=digest)
    assert (release.night, release.parent, release.rubrics) == (manifest.digest, None, manifest.rubrics)
    assert (release.rank, release.alpha, release.frozen_at_ms) == (8, 16, manifest.frozen_at_ms)
    assert release.gate["kl"] == 0.125 and release.gate["comparisons"][0]["difference"] == 1.0
    assert NightManifest.from_json((folder / NIGHT).read_text()) == manifest


def test_publishing_twice_changes_nothing(registry: Registry, make_candidate: MakeCandidate, make_manifest: Manifest) -> None:
    """A night killed after it published, and resumed, gives the same release and the same pointer."""
    manifest = make_manifest()
    candidate = make_candidate(manifest)
    first = publish_release(registry, candidate, manifest, GAIN, enter=print)
    assert publish_release(registry, candidate, manifest, GAIN, enter=print) == first
    assert registry.releases("acme") == [first]
    assert registry.pointer("acme") == Pointer(epoch=1, stable=first)


def test_a_night_is_in_the_ledger_before_its_release_serves(
    registry: Registry, make_candidate: MakeCandidate, make_manifest: Manifest
) -> None:
    """Killed in between, nothing serves of which nobody knows who trained it; the release is filed already."""
    manifest, seen = make_manifest(), []
    release = publish_release(
        registry,
        make_candidate(manifest),
        manifest,
        GAIN,
        enter=lambda name: seen.append((name, registry.releases("acme"), registry.pointer("acme").stable)),
    )
    assert seen == [(release, [release], None)]


def test_a_release_on_a_release_names_its_parent(
    registry: Registry, make_candidate: MakeCandidate, make_manifest: Manifest
) -> None:
    """The next night's release is trained on top of the one that served, and takes its place."""
    manifest = make_manifest()
    first = publish_release(registry, make_candidate(manifest), manifest, GAIN, enter=print)
    following = make_manifest(pointer=registry.pointer("acme"))
    second = publish_release(registry, make_candidate(following, seed=1), following, GAIN, enter=print)
    assert registry.manifest("acme", second).parent == first
    assert registry.pointer("acme") == Pointer(epoch=2, stable=second)
    assert registry.manifest("acme", first).engine_id != registry.manifest("acme", second).engine_id


def test_a_pointer_moved_meanwhile_is_left_alone(
    registry: Registry, make_candidate: MakeCandidate, make_manifest: Manifest
) -> None:
    """Somebody decided while the night ran: the release is filed, and the pointer stays as they set it."""
    manifest = make_manifest()
    other = publish_release(registry, make_candidate(manifest), manifest, GAIN, enter=print)
    with pytest.raises(PointerConflict, match=r"is filed, but .* was moved while the night ran.* start a new night"):
        publish_release(registry, make_candidate(manifest, seed=1), manifest, GAIN, enter=print)
    assert registry.pointer("acme") == Pointer(epoch=1, stable=other)
    assert len(registry.releases("acme")) == 2


@pytest.mark.parametrize("frozen_before", [True, False])
def test_a_frozen_pointer_is_left_alone(
    frozen_before: bool, registry: Registry, make_candidate: MakeCandidate, make_manifest: Manifest
) -> None:
    """A person stopped automatic changes before the night or during it: nothing moves; the message says what to do."""
    open_pointer = registry.pointer("acme")
    frozen = registry.move_pointer("acme", open_pointer, frozen=True)
    manifest = make_manifest(pointer=frozen if frozen_before else open_pointer)
    with pytest.raises(PointerConflict, match="is filed, but the pointer of 'acme' is frozen; unfreeze it and run --resume"):
        publish_release(registry, make_candidate(manifest), manifest, GAIN, enter=print)
    assert registry.pointer("acme") == frozen
    assert len(registry.releases("acme")) == 1


def test_freezing_and_unfreezing_does_not_cost_the_night(
    registry: Registry, make_candidate: MakeCandidate, make_manifest: Manifest
) -> None:
    """The advice above is true: once unfrozen, the same night publishes the release it had filed, on a later epoch."""
    manifest = make_manifest(pointer=registry.pointer("acme"))
    candidate = make_candidate(manifest)
    frozen = registry.move_pointer("acme", manifest.pointer, frozen=True)
    with pytest.raises(PointerConflict):
        publish_release(registry, candidate, manifest, GAIN, enter=print)
    registry.move_pointer("acme", frozen, frozen=False)
    digest = publish_release(registry, candidate, manifest, GAIN, enter=print)
    assert registry.pointer("acme") == Pointer(epoch=3, stable=digest)
    assert registry.releases("acme") == [digest]


def test_a_move_while_frozen_is_still_a_move(registry: Registry, make_candidate: MakeCandidate, make_manifest: Manifest) -> None:
    """Frozen, set back to the base model and unfrozen: the person's choice stays, and the message does not say --resume."""
    first = make_manifest()
    publish_release(registry, make_candidate(first), first, GAIN, enter=print)
    following = make_manifest(pointer=registry.pointer("acme"))
    changed = registry.move_pointer("acme", following.pointer, frozen=True)
    changed = registry.move_pointer("acme", changed, stable=None)
    now = registry.move_pointer("acme", changed, frozen=False)
    with pytest.raises(PointerConflict, match="start a new night without --resume"):
        publish_release(registry, make_candidate(following, seed=1), following, GAIN, enter=print)
    assert registry.pointer("acme") == now
