"""The release manifest and every reason to refuse a release."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightschool.errors import ConfigError, ReleaseRejected
from nightschool.registry.release import (
    ADAPTER_CONFIG,
    MANIFEST,
    REPORT,
    WEIGHTS,
    BaseModel,
    ReleaseFile,
    ReleaseManifest,
    check_digest,
    verify_release,
)
from nightschool.tenants import check_tenant

A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB")


def verify(adapters: Any, folder: Path, digest: str, **changes: Any) -> ReleaseManifest:
    asked = {"tenant": "acme", "base_model": adapters.base_model, "max_rank": 16} | changes
    return verify_release(folder, digest=digest, **asked)


# --- the manifest -----------------------------------------------------------------------------------------------------
def test_a_manifest_reads_back_as_it_was_written(adapters: Any) -> None:
    """to_bytes and from_bytes are inverse, and the digest is that of the bytes."""
    manifest = adapters.manifest(adapters.source())
    again = ReleaseManifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.digest == manifest.digest


def test_the_bytes_of_a_manifest_never_change() -> None:
    """The digests of this literal manifest are pinned, one for each schema: another form would rename every release."""
    manifest = ReleaseManifest(
        tenant="acme",
        engine_id=1000,
        base_model=BaseModel("a" * 64, "b" * 64, "c" * 64),
        dtype="",
        rank=8,
        alpha=16,
        target_modules=("q_proj",),
        files=(ReleaseFile(WEIGHTS, 3, "f" * 64),),
        night="d" * 64,
        parent=None,
        rubrics={"triage": "e" * 64},
        gate={"lower_bound": 0.125, "note": "naïve"},
        frozen_at_ms=1_760_000_000_000,
        schema=1,
    )
    assert manifest.digest == "cbe4a3ac3288ec2af890416be8e1e977b9e205e86e3c980c487bad4efdb7c771"
    of_today = replace(manifest, dtype="bfloat16", schema=2)
    assert of_today.digest == "d1640933ac554916f08ad7e7acafc5613b60ae5ca6cded3afc06d243338830c6"


def test_a_release_from_before_there_was_a_dtype_is_read_and_served(adapters: Any) -> None:
    """Schema 1 names no dtype: such a release keeps its name, and passes whatever type the server runs in."""
    source = adapters.source()
    folder, digest = adapters.sealed(source, dtype="", schema=1)
    assert b"dtype" not in (folder / MANIFEST).read_bytes()
    for dtype in (None, "bfloat16", "float16", "float32"):
        assert verify(adapters, folder, digest, dtype=dtype).dtype == ""


def test_a_release_made_for_another_dtype_is_refused(adapters: Any) -> None:
    """What the gate measured in one number type is not served in another; the sentence names both and the remedy."""
    folder, digest = adapters.sealed(adapters.source(), dtype="bfloat16")
    assert verify(adapters, folder, digest, dtype="bfloat16").dtype == "bfloat16"
    assert verify(adapters, folder, digest).dtype == "bfloat16"  # where it is only filed, not loaded
    with pytest.raises(ReleaseRejected, match=r"in bfloat16, this server has it in float32; set \[model\] dtype = \"bfloat16\""):
        verify(adapters, folder, digest, dtype="float32")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 3}, "schema is 3; this nightschool reads 1 to 2"),
        ({"schema": True}, "schema is True"),
        ({"schema": 1}, "dtype is 'float32'; it must be"),
        ({"dtype": "auto"}, "dtype is 'auto'; it must be one of bfloat16, float16, float32"),
        ({"dtype": ""}, "dtype is ''; it must be"),
        ({"dtype": None}, "dtype is None"),
        ({"tenant": "../acme"}, "is not a tenant name"),
        ({"engine_id": 0}, "engine_id is 0; it must be a whole number from 1"),
        ({"engine_id": 2**31}, "engine_id is 2147483648"),
        ({"engine_id": True}, "engine_id is True"),
        ({"rank": "8"}, "rank is '8'"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"night": None}, "night has None; it must be a string"),
        ({"target_modules": [1]}, "target_modules has 1"),
        ({"target_modules": "q_proj"}, "not the canonical JSON of its content"),
        ({"base_model": {"weights": 1, "tokenizer": "b", "chat_template": "c"}}, "base_model has 1"),
        ({"base_model": {"weights": "a"}}, "missing"),
        ({"files": [{"name": WEIGHTS, "size": -1, "sha256": "f" * 64}]}, "files has the size -1"),
        ({"files": [{"name": None, "size": 1, "sha256": "f" * 64}]}, "files has None"),
        ({"files": [{"name": WEIGHTS}]}, "missing"),
        ({"files": 3}, "not a release manifest"),
        ({"surplus": 1}, r"fields \['surplus'\] are unknown or missing"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(adapters: Any, change: dict[str, Any], said: str) -> None:
    """Each field must be of its type and within its bounds, also in a manifest from elsewhere."""
    raw = json.loads(adapters.manifest(adapters.source()).to_bytes()) | change
    data = json.dumps(raw, sort_keys=True, indent=1, ensure_ascii=False).encode()
    with pytest.raises(ReleaseRejected, match=said):
        ReleaseManifest.from_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"[]",
        lambda data: b"3",
        lambda data: b"\xff\xfe",
        lambda data: b"[" * 100_000,
        lambda data: data + b"\n",
        lambda data: data.replace(b"0.125", b"NaN"),
        lambda data: data.replace(b'"rank": 8', b'"rank": 9,\n "rank": 8'),
        lambda data: json.dumps(json.loads(data)).encode(),
    ],
    ids=["empty", "list", "number", "not text", "deep", "newline", "NaN", "key twice", "other spelling"],
)
def test_what_is_not_a_manifest_in_its_one_spelling_is_refused(adapters: Any, spoil: Callable[[bytes], bytes]) -> None:
    """A manifest has only one form; everything else, however broken, is a ReleaseRejected and no other error."""
    with pytest.raises(ReleaseRejected, match="not a release manifest"):
        ReleaseManifest.from_bytes(spoil(adapters.manifest(adapters.source()).to_bytes()))


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a/b", "..", "a\n", "é", "a" * 64, None, 3])
def test_a_tenant_name_never_leaves_its_folder(name: Any) -> None:
    """Only 1 to 63 of a-z, 0-9 and '-' is a tenant name."""
    with pytest.raises(ConfigError, match="is not a tenant name; allowed are"):
        check_tenant(name)
    assert check_tenant("a-1") == "a-1"


@pytest.mark.parametrize("digest", ["", "../x", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", None])
def test_a_digest_never_leaves_its_folder(digest: Any) -> None:
    """Only 64 lowercase hex digits are a digest."""
    with pytest.raises(ReleaseRejected, match="64 lowercase hex digits"):
        check_digest(digest)


# --- a good release ---------------------------------------------------------------------------------------------------
def test_a_whole_release_passes_and_gives_its_manifest(adapters: Any) -> None:
    """What a night files passes every check."""
    folder, digest = adapters.sealed(adapters.source())
    assert verify(adapters, folder, digest) == adapters.manifest(folder, files=verify(adapters, folder, digest).files)


def test_a_release_without_a_report_passes(adapters: Any) -> None:
    """The report is for people and may be missing; weights and configuration may not."""
    source = adapters.source()
    (source / REPORT).unlink()
    folder, digest = adapters.sealed(source)
    assert verify(adapters, folder, digest).tenant == "acme"


# --- changed after it was filed ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [WEIGHTS, ADAPTER_CONFIG, REPORT, MANIFEST])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_bit_in_any_file_is_refused(adapters: Any, name: str, where: float) -> None:
    """One bit, at the start, in the middle or at the end of any file."""
    folder, digest = adapters.sealed(adapters.source())
    data = bytearray((folder / name).read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ReleaseRejected, match=r"does not have the size and SHA-256|does not match the digest"):
        verify(adapters, folder, digest)


@pytest.mark.parametrize("name", [WEIGHTS, ADAPTER_CONFIG, MANIFEST])
@pytest.mark.parametrize("by", ["truncated", "longer", "missing", "symlink", "folder", "pipe"])
def test_a_file_that_is_not_the_one_filed_is_refused(adapters: Any, name: str, by: str) -> None:
    """A file of another size, none, a link to the very same bytes, or no file at all."""
    folder, digest = adapters.sealed(adapters.source())
    path, data = folder / name, (folder / name).read_bytes()
    path.unlink()
    if by == "truncated":
        path.write_bytes(data[:-1])
    elif by == "longer":
        path.write_bytes(data + b"\n")
    elif by == "symlink":
        (adapters.root / "elsewhere").write_bytes(data)
        path.symlink_to(adapters.root / "elsewhere")
    elif by == "folder":
        path.mkdir()
    elif by == "pipe":
        os.mkfifo(path)
    with pytest.raises(ReleaseRejected, match=r"^release .* of tenant 'acme' is refused: "):
        verify(adapters, folder, digest)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", ".hidden", "tokenizer.json", "folder/"])
def test_a_file_too_many_is_refused(adapters: Any, name: str) -> None:
    """No file is there that is not named: vLLM would unpickle an adapter_model.bin."""
    folder, digest = adapters.sealed(adapters.source())
    (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    with pytest.raises(ReleaseRejected, match=f"it holds .*{name.strip('/')}"):
        verify(adapters, folder, digest)


def test_another_digest_tenant_or_base_model_is_refused(adapters: Any) -> None:
    """A release serves only under its own digest and tenant, on its own base model, tokenizer and chat template."""
    folder, digest = adapters.sealed(adapters.source())
    with pytest.raises(ReleaseRejected, match="does not match the digest"):
        verify(adapters, folder, "0" * 64)
    with pytest.raises(ReleaseRejected, match="belongs to tenant 'acme'"):
        verify(adapters, folder, digest, tenant="bank")
    for part in ("weights", "tokenizer", "chat_template"):
        with pytest.raises(ReleaseRejected, match=f"another base model: {part} is "):
            verify(adapters, folder, digest, base_model=replace(adapters.base_model, **{part: "0" * 64}))


def test_a_missing_folder_is_refused(adapters: Any) -> None:
    """A missing folder is a rejection like any other, not a crash of the replica."""
    with pytest.raises(ReleaseRejected, match=r"manifest\.json is missing"):
        verify(adapters, adapters.root / "nowhere", "0" * 64)


# --- filed by somebody who makes the digests fit ----------------------------------------------------------------------
@pytest.mark.parametrize("name", ["adapter_model.bin", "../../escape", "tokenizer.json", MANIFEST])
def test_a_manifest_cannot_name_another_file(adapters: Any, name: str) -> None:
    """The file list holds weights, configuration and report only, even when size and digest fit."""
    source = adapters.source()
    (source / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    manifest = adapters.manifest(source)
    digest = adapters.seal(
        source, replace(manifest, files=(*manifest.files[:-1], replace(manifest.files[-1], name=name))).to_bytes()
    )
    with pytest.raises(ReleaseRejected, match="the manifest names"):
        verify(adapters, source, digest)


def test_a_manifest_cannot_name_a_file_twice(adapters: Any) -> None:
    """Each file is named once."""
    source = adapters.source()
    manifest = adapters.manifest(source)
    digest = adapters.seal(source, replace(manifest, files=(*manifest.files, manifest.files[0])).to_bytes())
    with pytest.raises(ReleaseRejected, match="the manifest names"):
        verify(adapters, source, digest)


def test_weights_and_configuration_are_both_needed(adapters: Any) -> None:
    """A manifest that names no weights is refused."""
    source = adapters.source()
    (source / WEIGHTS).unlink()
    folder, digest = adapters.sealed(source)
    with pytest.raises(ReleaseRejected, match="allowed are"):
        verify(adapters, folder, digest)


def test_size_and_rank_limits_hold(adapters: Any) -> None:
    """A release above the server's rank or the size limit is refused before it is read."""
    folder, digest = adapters.sealed(adapters.source())
    with pytest.raises(ReleaseRejected, match="rank 8 is above the 4"):
        verify(adapters, folder, digest, max_rank=4)
    with pytest.raises(ReleaseRejected, match="at most 100 are allowed"):
        verify(adapters, folder, digest, max_bytes=100)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "not a plain LoRA"),
        ({"bias": "all"}, "not a plain LoRA"),
        ({"use_dora": True}, "sets use_dora=True"),
        ({"lora_bias": True}, "sets lora_bias=True"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"layer_replication": [[0, 1]]}, "sets layer_replication"),
        ({"use_qalora": True}, "sets use_qalora"),
        ({"use_bdlora": {"x": 1}}, "sets use_bdlora"),
        ({"alora_invocation_tokens": [1]}, "sets alora_invocation_tokens"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"target_parameters": ["w"]}, "sets target_parameters"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"rank_pattern": {"q_proj": 64}}, "rank or alpha patterns"),
        ({"alpha_pattern": {"q_proj": 64}}, "rank or alpha patterns"),
        ({"r": 16}, "r=16 and lora_alpha=16, the manifest 8 and 16"),
        ({"lora_alpha": 32}, "r=8 and lora_alpha=32, the manifest 8 and 16"),
    ],
)
def test_an_adapter_that_would_be_served_as_something_else_is_refused(adapters: Any, change: dict[str, Any], said: str) -> None:
    """A configuration that vLLM does not implement, or applies differently from training, is refused."""
    folder, digest = adapters.sealed(adapters.source(**change))
    with pytest.raises(ReleaseRejected, match=said):
        verify(adapters, folder, digest)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "[" * 100_000])
def test_a_configuration_that_is_no_object_is_refused(adapters: Any, text: str) -> None:
    """Broken JSON in adapter_config.json is a rejection."""
    source = adapters.source()
    (source / ADAPTER_CONFIG).write_text(text)
    folder, digest = adapters.sealed(source)
    with pytest.raises(ReleaseRejected, match=r"adapter_config\.json is not"):
        verify(adapters, folder, digest)


def zeros(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds no tensor"),
        ({A: zeros(8, 24)}, "only one of lora_A and lora_B"),
        ({A: zeros(4, 24), B: zeros(16, 8)}, r"has shape \[4, 24\], which is not of rank 8"),
        ({A: zeros(8, 24), B: zeros(8, 16)}, r"has shape \[8, 16\], which is not of rank 8"),
        ({A: zeros(8), B: zeros(16, 8)}, r"has shape \[8\]"),
        ({A: zeros(8, 0), B: zeros(16, 8)}, r"has shape \[8, 0\]"),
        ({A: zeros(8, 24), B: zeros(16, 8), "lm_head.weight": zeros(2, 2)}, "'lm_head.weight' is not a LoRA matrix of q_proj"),
        (
            {A.replace("q_proj", "k_proj"): zeros(8, 24), B.replace("q_proj", "k_proj"): zeros(16, 8)},
            "not a LoRA matrix of q_proj",
        ),
        ({A.replace("lora_A", "lora_embedding_A"): zeros(8, 24)}, "not a LoRA matrix"),
        ({A + ".x": zeros(8, 24)}, "not a LoRA matrix"),
        ({A: zeros(8, 24), B: np.full((16, 8), np.nan, np.float32)}, "NaN, infinite"),
    ],
)
def test_tensors_that_are_not_the_named_matrices_are_refused(adapters: Any, tensors: dict[str, Any], said: str) -> None:
    """Every tensor is a finite lora_A or lora_B of a named target module, of the manifest's rank, in pairs."""
    folder, digest = adapters.sealed(adapters.source(tensors=tensors))
    with pytest.raises(ReleaseRejected, match=said):
        verify(adapters, folder, digest)
