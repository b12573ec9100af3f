"""The release that a night learns on top of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nightschool.errors import ReleaseRejected
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.release import WEIGHTS, BaseModel
from nightschool_nightly.freeze.parent import verify_parent

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
