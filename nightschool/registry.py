"""The registry: immutable releases by content, and one mutable pointer per tenant. Here on a folder.

    <root>/<tenant>/<digest>/{adapter_model.safetensors, adapter_config.json, report.html, manifest.json}
    <root>/<tenant>/pointer.json        {epoch, stable, canary, weight, frozen}, replaced by compare-and-swap on epoch
    <root>/engine-ids/<n>               who holds adapter id n inside vLLM

A release folder appears by one rename, complete, or not at all. Readers trust only folders with a manifest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nightschool.errors import PointerConflict, RegistryError
from nightschool.release import MANIFEST, WEIGHTS, ReleaseManifest, check_digest, check_tenant, describe_file

# vLLM counts static --lora-modules from 1, and keeps adapter ids in an int32.
_FIRST_ENGINE_ID = 1000
_LAST_ENGINE_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which release of a tenant answers. The only mutable state in the registry."""

    epoch: int = 0
    """Grows by one with every change; 0 means that nothing was ever released."""
    stable: str | None = None
    """Digest of the release that answers; None is the base model."""
    canary: str | None = None
    weight: int = 0
    """Share of traffic on the canary, in basis points (0 to 10,000)."""
    frozen: bool = False
    """A person stopped automatic changes."""


class Registry:
    """A registry on a folder (local disk or NFS)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # --- reading --------------------------------------------------------------------------------------------------------
    def pointer(self, tenant: str) -> Pointer:
        """The pointer of `tenant`; epoch 0 before its first release."""
        path = self._tenant_folder(tenant) / "pointer.json"
        try:
            raw = json.loads(path.read_bytes())
            return Pointer(**{name: raw[name] for name in ("epoch", "stable", "canary", "weight", "frozen")})
        except FileNotFoundError:
            return Pointer()
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(
                f"{path} is not a pointer ({error}); restore it from a backup or delete it to serve the base model"
            ) from None

    def release_folder(self, tenant: str, digest: str) -> Path:
        """Where the release is; it may not exist. The path comes from checked names only."""
        return self._tenant_folder(tenant) / check_digest(digest)

    def manifest(self, tenant: str, digest: str) -> ReleaseManifest:
        """The manifest as filed; its files are not checked (see `release.verify_release`)."""
        path = self.release_folder(tenant, digest) / MANIFEST
        try:
            return ReleaseManifest.from_bytes(path.read_bytes())
        except FileNotFoundError:
            raise RegistryError(f"tenant {tenant!r} has no release {digest[:12]} in {self.root}") from None

    def releases(self, tenant: str) -> list[str]:
        """Digests of every complete release of `tenant`, sorted."""
        folder = self._tenant_folder(tenant)
        return sorted(path.parent.name for path in folder.glob(f"{'[0-9a-f]' * 64}/{MANIFEST}"))

    # --- writing --------------------------------------------------------------------------------------------------------
    def reserve_engine_id(self, tenant: str, weights: Path) -> int:
        """An adapter id that no other release in this registry has; the same weights of a tenant get the same id again."""
        owner = f"{check_tenant(tenant)} {describe_file(weights).sha256}\n"
        folder = self.root / "engine-ids"
        folder.mkdir(parents=True, exist_ok=True)
        taken = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
        for number in taken:
            if (folder / str(number)).read_text() == owner:
                return number
        number = taken[-1] + 1 if taken else _FIRST_ENGINE_ID
        while number <= _LAST_ENGINE_ID:
            draft = folder / f".{os.getpid()}-{number}.tmp"
            draft.write_text(owner)
            try:
                os.link(draft, folder / str(number))
                return number
            except FileExistsError:
                number += 1
            finally:
                draft.unlink()
        raise RegistryError(f"adapter ids up to {_LAST_ENGINE_ID} are all taken in {folder}")

    def add(self, source: Path, describe: Callable[[int], ReleaseManifest]) -> str:
        """File the adapter in `source` as a release and return its digest; nothing points at it yet.

        `describe(engine_id)` returns the manifest, which names the files to take from `source`. Filing the same release again
        changes nothing. A failure (a full disk, a crash) leaves the registry without the release.
        """
        tenant = describe(0).tenant
        manifest = describe(self.reserve_engine_id(tenant, source / WEIGHTS))
        target = self.release_folder(tenant, manifest.digest)
        if (target / MANIFEST).exists():
            return manifest.digest
        draft = target.with_name(f".{manifest.digest}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            for entry in manifest.files:
                _write_durably(draft / entry.name, (source / entry.name).read_bytes())
                if describe_file(draft / entry.name) != entry:
                    raise RegistryError(f"{entry.name} changed while it was filed; it no longer has the digest in the manifest")
            _write_durably(draft / MANIFEST, manifest.to_bytes())
            draft.rename(target)
            _sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return manifest.digest

    def move_pointer(self, tenant: str, expected: Pointer, **changes: object) -> Pointer:
        """Replace the pointer with `expected` changed; `PointerConflict` when it is no longer `expected`."""
        with self._locked(tenant) as folder:
            if (found := self.pointer(tenant)) != expected:
                raise PointerConflict(
                    f"pointer of {tenant!r} is at epoch {found.epoch}, expected {expected.epoch}: read it again and decide anew"
                )
            moved = replace(expected, epoch=expected.epoch + 1, **changes)  # type: ignore[arg-type]
            for digest in (moved.stable, moved.canary):
                if digest is not None:
                    self.manifest(tenant, digest)
            draft = folder / f".pointer-{moved.epoch}.tmp"
            try:
                _write_durably(draft, json.dumps(asdict(moved), sort_keys=True).encode())
                draft.replace(folder / "pointer.json")
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            _sync_folder(folder)
            return moved

    # --- inside ---------------------------------------------------------------------------------------------------------
    def _tenant_folder(self, tenant: str) -> Path:
        return self.root / check_tenant(tenant)

    @contextmanager
    def _locked(self, tenant: str) -> Iterator[Path]:
        folder = self._tenant_folder(tenant)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder


def engine_name(tenant: str, digest: str) -> str:
    """The adapter's name inside vLLM: immutable, because vLLM keys its prefix cache by name and path."""
    return f"t-{check_tenant(tenant)}.{check_digest(digest)[:16]}"


def content_digest(*parts: bytes) -> str:
    """SHA-256 over length-prefixed parts, so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
