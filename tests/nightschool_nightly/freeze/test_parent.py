"""The release that a night learns on top of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nightschool.errors import ReleaseRejected
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.ledger import LedgerEntry
from nightschool.registry.release import WEIGHTS, BaseModel
from nightschool_nightly.freeze.freeze import has_other_pseudonyms
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.freeze.parent import verify_parent

RELEASE = "e" * 64
BASE = BaseModel("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def registry(tmp_path: Path, file_release: Callable[..., str]) -> Registry:
    """A registry whose tenant acme is served by one release of rank 8 on `BASE`."""
    registry = Registry(tmp_path / "registry")
    file_release(registry, base_model=BASE)
    return registry


def verify(registry: Registry, *, base_model: BaseModel = BASE, dtype: str = "float32", max_rank: int = 16) -> None:
    verify_parent(registry, "acme", registry.pointer("acme"), base_model=base_model, dtype=dtype, max_rank=max_rank)


def test_a_good_release_passes(registry: Registry) -> None:
    """What serving accepts can be learned on, and a tenant without a release has nothing to check."""
    verify(registry)
    verify_parent(registry, "other", Pointer(), base_model=BASE, dtype="float32", max_rank=16)


@pytest.mark.parametrize("part", ["weights", "tokenizer", "chat_template"])
def test_a_release_on_another_base_model_is_refused(part: str, registry: Registry) -> None:
    """An adapter is a change of one model; on another of the same shapes it would load, and mean nothing."""
    with pytest.raises(ReleaseRejected, match=f"tonight would learn on top of, .* another base model: {part} is .*registry.md"):
        verify(registry, base_model=replace(BASE, **{part: "d" * 64}))


def entry(pseudonyms: tuple[str, ...]) -> LedgerEntry:
    return LedgerEntry("1" * 64, "", "published", RELEASE, None, (), 0, 0, pseudonyms=pseudonyms)


def test_a_key_that_the_release_was_not_made_under_is_noticed() -> None:
    """Its users have other pseudonyms, so who trained cannot be told; a key that is taken away changes nobody's."""
    nights = [entry(("a",)), entry(("a", "b"))]
    for pseudonyms, others in ((("a", "b"), False), (("b",), False), (("b", "c"), True)):
        assert has_other_pseudonyms(nights, pseudonyms) is others
    assert not has_other_pseudonyms([], ("c",)), "nobody has trained the base model"


def test_a_night_that_starts_over_has_no_parent(make_manifest: Callable[..., NightManifest]) -> None:
    """It learns on top of the base model, whatever serves, and it is another night than one that does not."""
    pointer = Pointer(1, RELEASE)
    over, on_top = (make_manifest(pointer=pointer, starts_over=starts) for starts in (True, False))
    assert (over.parent, on_top.parent) == (None, RELEASE)
    assert over.digest != on_top.digest
    assert NightManifest.from_json(over.to_json()) == over


def test_a_damaged_release_is_refused(registry: Registry) -> None:
    """One bit of the weights turned over on the disk is found before it is trained on."""
    stable = registry.pointer("acme").stable
    assert stable is not None
    path = registry.release_folder("acme", stable) / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReleaseRejected, match="does not have the size and SHA-256"):
        verify(registry)


def test_a_release_that_serving_would_refuse_is_refused(registry: Registry) -> None:
    """Above the rank that is served, users get the parent's parent: a night would compare with what nobody gets."""
    with pytest.raises(ReleaseRejected, match="rank 8 is above the 4 that is served here"):
        verify(registry, max_rank=4)


def test_a_release_for_another_dtype_is_refused(registry: Registry) -> None:
    """It was measured beside a base model in fp32; in bf16 it answers differently, and serving refuses it there."""
    with pytest.raises(ReleaseRejected, match="float32, this server has it in bfloat16"):
        verify(registry, dtype="bfloat16")
