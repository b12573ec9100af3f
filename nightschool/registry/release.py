"""The release manifest, and the checks an adapter passes before any process loads it.

A release is a folder `<tenant>/<digest>/` whose name is the SHA-256 of its own manifest. So no caller can choose a
path, and a release that was changed no longer matches its name. The checks need no torch: they read the header of the
safetensors file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nightschool.dtype import DTYPES
from nightschool.errors import ReleaseRejected, shown
from nightschool.registry.tensors import check_tensors
from nightschool.tenants import check_tenant

SCHEMA = 2
_WITHOUT_DTYPE = 1
"""The schema before there was `dtype`. Its releases are read and served, and keep their bytes and so their names."""
MANIFEST = "manifest.json"
WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
REPORT = "report.html"
NIGHT = "night.json"
_ALLOWED_FILES = {WEIGHTS, ADAPTER_CONFIG, REPORT, NIGHT}
_MAX_MANIFEST_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# What vLLM (lora/peft_helper.py) cannot serve, or would serve wrongly. Checked here, so that publishing fails and not
# serving.
_FORBIDDEN_CONFIG = {
    "use_dora": False,
    "modules_to_save": None,
    "lora_bias": False,
    "layer_replication": None,
    "use_bdlora": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}
# Other ways to start a LoRA (PiSSA, OLoRA, CorDA, LoftQ) change the base weights too, which the server does not.
_ALLOWED_INIT = (True, False, None, "gaussian")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What an adapter was trained on, by content."""

    weights: str
    """SHA-256 over the base model's safetensors files, in order of name."""
    tokenizer: str
    """SHA-256 of tokenizer.json."""
    chat_template: str
    """SHA-256 of the chat template text."""


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """One file of a release."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ReleaseManifest:
    """What a release is, where it came from and why it passed. Written last; names every other file."""

    tenant: str
    engine_id: int
    """The adapter id inside vLLM: issued by the registry, never used twice in it."""
    base_model: BaseModel
    dtype: str
    """Type of the base weights that it was trained and tested with; empty in schema 1, which does not say."""
    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    files: tuple[ReleaseFile, ...]
    night: str
    """Digest of the night manifest this came out of."""
    parent: str | None
    """Digest of the release this one was trained on top of."""
    rubrics: Mapping[str, str]
    """Rubric digest by task."""
    gate: Mapping[str, Any] = field(default_factory=dict)
    """The gate's metrics, as in the report."""
    frozen_at_ms: int = 0
    """When the night froze its input, in milliseconds since 1970, as its manifest says; a release has no other time."""
    schema: int = SCHEMA

    def to_bytes(self) -> bytes:
        """The canonical JSON whose SHA-256 names the release."""
        content = asdict(self)
        if self.schema == _WITHOUT_DTYPE:
            del content["dtype"]
        return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest in hex, which names the release."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> ReleaseManifest:
        """Parse a manifest; `ReleaseRejected` when it is not one."""
        try:
            raw = json.loads(data)
            if raw.get("schema") == _WITHOUT_DTYPE:
                raw = {"dtype": "", **raw}
            if set(raw) != (names := {f.name for f in fields(cls)}):
                raise ValueError(f"fields {sorted(set(raw) ^ names)} are unknown or missing")
            raw["base_model"] = BaseModel(**raw["base_model"])
            raw["files"] = tuple(ReleaseFile(**entry) for entry in raw["files"])
            raw["target_modules"] = tuple(raw["target_modules"])
            manifest = cls(**raw)
            _check_types(manifest)
            if manifest.to_bytes() != data:
                raise ValueError("it is not the canonical JSON of its content (sorted keys, indented by 1)")
            return manifest
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ReleaseRejected(f"not a release manifest: {error}") from None


def _check_types(manifest: ReleaseManifest) -> None:
    """Check what JSON does not guarantee and what a path or vLLM, where adapter ids are int32, relies on."""
    if manifest.schema not in (_WITHOUT_DTYPE, SCHEMA) or type(manifest.schema) is not int:
        raise ValueError(
            f"schema is {shown(manifest.schema)}; this nightschool reads 1 to {SCHEMA}, use the version that wrote it"
        )
    if manifest.dtype not in (DTYPES if manifest.schema == SCHEMA else ("",)):
        raise ValueError(f"dtype is {shown(manifest.dtype)}; it must be one of {', '.join(DTYPES)} (schema {SCHEMA} and up)")
    check_tenant(manifest.tenant)
    for name in ("engine_id", "rank", "alpha"):
        if type(number := getattr(manifest, name)) is not int or not 1 <= number < 1 << 31:
            raise ValueError(f"{name} is {shown(number)}; it must be a whole number from 1 to {(1 << 31) - 1}")
    texts: dict[str, Iterable[object]] = {
        "night": [manifest.night],
        "target_modules": manifest.target_modules,
        "base_model": asdict(manifest.base_model).values(),
        "files": [text for file in manifest.files for text in (file.name, file.sha256)],
    }
    for name, values in texts.items():
        if odd := [value for value in values if not isinstance(value, str)]:
            raise ValueError(f"{name} has {shown(odd[0])}; it must be a string")
    if odd_sizes := [file.size for file in manifest.files if type(file.size) is not int or file.size < 0]:
        raise ValueError(f"files has the size {shown(odd_sizes[0])}; it must be a whole number of bytes")


def check_digest(digest: str) -> str:
    """Return `digest` if it is 64 lowercase hex digits, else raise `ReleaseRejected`."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ReleaseRejected(f"release {digest!r} is not a digest of 64 lowercase hex digits")
    return digest


def describe_file(path: Path) -> ReleaseFile:
    """Name, size and SHA-256 of `path`."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ReleaseFile(path.name, path.stat().st_size, sha256)


def verify_release(
    folder: Path,
    *,
    tenant: str,
    digest: str,
    base_model: BaseModel,
    max_rank: int,
    dtype: str | None = None,
    max_bytes: int = 4 << 30,
) -> ReleaseManifest:
    """Check everything about the release in `folder` and return its manifest; `ReleaseRejected` says what is wrong.

    `dtype` is the type of the base weights that it is loaded beside; None where it is not loaded. A release of schema 1
    does not say which type it was made for, and passes with every one.

    In this order: the manifest's own digest, the tenant, the base model and its type, the exact list of regular files with sizes and
    SHA-256, the adapter configuration, and names, shapes and numbers of the tensors, which must be finite. Nothing is
    unpickled.
    """
    where = f"release {digest[:12]} of tenant {tenant!r}"
    try:
        data = _read_limited(folder / MANIFEST, _MAX_MANIFEST_BYTES)
        if hashlib.sha256(data).hexdigest() != check_digest(digest):
            raise ReleaseRejected("the manifest does not match the digest it is filed under")
        manifest = ReleaseManifest.from_bytes(data)
        if manifest.tenant != tenant:
            raise ReleaseRejected(f"it belongs to tenant {manifest.tenant!r}")
        for part, ours, theirs in zip(
            asdict(base_model), asdict(base_model).values(), asdict(manifest.base_model).values(), strict=True
        ):
            if ours != theirs:
                raise ReleaseRejected(
                    f"it was trained on another base model: {part} is {theirs[:12]}, this server has {ours[:12]}"
                )
        if manifest.dtype and dtype not in (None, manifest.dtype):
            raise ReleaseRejected(
                f"it was trained and tested with a base model in {manifest.dtype}, this server has it in {dtype}; set "
                f'[model] dtype = "{manifest.dtype}" for serving, or "{dtype}" for the nights and run one'
            )
        _verify_files(folder, manifest, max_bytes)
        _verify_config(folder / ADAPTER_CONFIG, manifest, max_rank)
        _verify_tensors(folder / WEIGHTS, manifest)
    except OSError as error:
        raise ReleaseRejected(f"{where} is refused: {error}") from error
    return manifest


def _read_limited(path: Path, limit: int) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise ReleaseRejected(f"{path.name} is missing or not a regular file")
    if (size := path.stat().st_size) > limit:
        raise ReleaseRejected(f"{path.name} has {size} bytes, at most {limit} are allowed")
    return path.read_bytes()


def _verify_files(folder: Path, manifest: ReleaseManifest, max_bytes: int) -> None:
    named = sorted(entry.name for entry in manifest.files)
    present = sorted({path.name for path in folder.iterdir()} - {MANIFEST})
    if named != present or not {WEIGHTS, ADAPTER_CONFIG} <= set(named) <= _ALLOWED_FILES:
        raise ReleaseRejected(f"it holds {present}, the manifest names {named}, allowed are {sorted(_ALLOWED_FILES)}")
    if (total := sum(entry.size for entry in manifest.files)) > max_bytes:
        raise ReleaseRejected(f"it has {total} bytes, at most {max_bytes} are allowed")
    for entry in manifest.files:
        path = folder / entry.name
        if path.is_symlink() or not path.is_file():
            raise ReleaseRejected(f"{entry.name} is not a regular file")
        # The size is compared first, so that no huge file is hashed.
        if path.stat().st_size != entry.size or describe_file(path) != entry:
            raise ReleaseRejected(f"{entry.name} does not have the size and SHA-256 that the manifest names")


def _verify_config(path: Path, manifest: ReleaseManifest, max_rank: int) -> None:
    try:
        config = json.loads(_read_limited(path, _MAX_MANIFEST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ReleaseRejected(f"{path.name} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise ReleaseRejected(f"{path.name} is not a plain LoRA configuration without bias")
    for name, allowed in _FORBIDDEN_CONFIG.items():
        if config.get(name, allowed) != allowed:
            raise ReleaseRejected(f"{path.name} sets {name}={shown(config[name])}, which cannot be served")
    if (init := config.get("init_lora_weights")) not in _ALLOWED_INIT:
        raise ReleaseRejected(f"{path.name} sets init_lora_weights={shown(init)}; allowed are {_ALLOWED_INIT}")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ReleaseRejected(f"{path.name} has rank or alpha patterns; one rank and one alpha are allowed")
    if (config.get("r"), config.get("lora_alpha")) != (manifest.rank, manifest.alpha):
        found = f"r={shown(config.get('r'))} and lora_alpha={shown(config.get('lora_alpha'))}"
        raise ReleaseRejected(f"{path.name} has {found}, the manifest {manifest.rank} and {manifest.alpha}")
    if manifest.rank > max_rank:
        raise ReleaseRejected(f"rank {manifest.rank} is above the {max_rank} that is served here")


def _verify_tensors(path: Path, manifest: ReleaseManifest) -> None:
    """Every tensor is a lora_A [r, in] or lora_B [out, r] of a named target module, in pairs."""
    pairs: dict[str, set[str]] = {}
    for tensor in check_tensors(path):
        name, shape = tensor.name, tensor.shape
        match = _TENSOR.fullmatch(name)
        if not match or match[1].rsplit(".", 1)[-1] not in manifest.target_modules:
            raise ReleaseRejected(f"tensor {shown(name)} is not a LoRA matrix of {', '.join(manifest.target_modules)}")
        if len(shape) != 2 or 0 in shape or shape[0 if match[2] == "A" else 1] != manifest.rank:
            raise ReleaseRejected(f"tensor {shown(name)} has shape {list(shape)}, which is not of rank {manifest.rank}")
        pairs.setdefault(match[1], set()).add(match[2])
    if not pairs:
        raise ReleaseRejected(f"{path.name} holds no tensor")
    if lonely := [module for module, sides in pairs.items() if len(sides) != 2]:
        raise ReleaseRejected(f"modules {shown(lonely)} have only one of lora_A and lora_B")
