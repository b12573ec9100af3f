"""The registry: immutable releases by content, and one mutable pointer per tenant. Here on a folder.

    <root>/<tenant>/<digest>/{adapter_model.safetensors, adapter_config.json, report.html, manifest.json}
    <root>/<tenant>/pointer.json        {epoch, stable, canary, weight, frozen}, replaced by compare-and-swap on epoch
    <root>/<tenant>/nights/<n>.json     what the n-th night that ended has read, and what its release was made of (`ledger`)
    <root>/engine_ids/<n>               who holds adapter id n inside vLLM (`adapter_ids`)

A release folder appears complete, by one rename, or not at all. Readers trust only folders with a manifest. Writers of
one tenant take turns by a file lock; readers never wait. What a writer reports as done is on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nightschool.errors import ConfigError, PointerConflict, RegistryError, ReleaseRejected, shown
from nightschool.registry import adapter_ids
from nightschool.registry.durable import replace_durably, sync_folder, write_durably, writing
from nightschool.registry.ledger import Ledger
from nightschool.registry.release import MANIFEST, WEIGHTS, ReleaseManifest, check_digest, describe_file, verify_release
from nightschool.tenants import check_tenant

_ENGINE_IDS = "engine_ids"  # with an underscore it is no tenant's name
_MAX_POINTER_BYTES = 64 << 10  # a pointer has 300; what is larger, or a pipe, would hold up its reader
_NIGHTS = "nights"


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which release of a tenant answers: the only state in the registry that changes."""

    epoch: int = 0
    """Increases by one with every change; 0 means that nothing was ever released."""
    stable: str | None = None
    """Digest of the release that answers; None for the base model."""
    canary: str | None = None
    """Digest of a newer release that answers a share of the traffic; None without one."""
    weight: int = 0
    """Share of traffic on the canary, in basis points (0 to 10,000)."""
    frozen: bool = False
    """Whether a person has stopped automatic changes."""

    def __post_init__(self) -> None:
        if type(self.epoch) is not int or self.epoch < 0:
            raise ConfigError(f"pointer epoch is {shown(self.epoch)}; it must be a whole number from 0")
        if type(self.weight) is not int or not 0 <= self.weight <= 10_000:
            raise ConfigError(f"pointer weight is {shown(self.weight)}; allowed are 0 to 10000 basis points")
        if type(self.frozen) is not bool:
            raise ConfigError(f"pointer frozen is {shown(self.frozen)}; it must be true or false")
        for digest in (self.stable, self.canary):
            if digest is not None:
                check_digest(digest)


class Registry:
    """A registry on a folder (local disk or NFS)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def create(self) -> None:
        """Make an empty registry where none is; one that is there stays as it is."""
        (self.root / _ENGINE_IDS).mkdir(parents=True, exist_ok=True)

    def check_present(self) -> None:
        """`RegistryError` where no registry is: a folder that is not mounted must not look like one without releases."""
        if not (self.root / _ENGINE_IDS).is_dir():
            raise RegistryError(
                f"{self.root} is no registry: it has no folder {_ENGINE_IDS}; mount the registry there, or make an empty one"
                f" with: mkdir -p {self.root / _ENGINE_IDS}"
            )

    # --- reading ------------------------------------------------------------------------------------------------------
    def pointer(self, tenant: str) -> Pointer:
        """The pointer of `tenant`; epoch 0 before its first release."""
        path = self._tenant_folder(tenant) / "pointer.json"
        try:
            raw = json.loads(_read_small(path))
            return Pointer(**{name: raw[name] for name in ("epoch", "stable", "canary", "weight", "frozen")})
        except FileNotFoundError:
            return Pointer()
        except (ValueError, KeyError, TypeError, RecursionError, ReleaseRejected) as error:
            raise RegistryError(
                f"{path} is not a pointer ({error}); restore it from a backup or delete it to serve the base model"
            ) from None

    def release_folder(self, tenant: str, digest: str) -> Path:
        """The folder of the release, which need not exist. The path is made of checked names only."""
        return self._tenant_folder(tenant) / check_digest(digest)

    def manifest(self, tenant: str, digest: str) -> ReleaseManifest:
        """The manifest that `digest` names; the other files are not checked (see `release.verify_release`)."""
        path = self.release_folder(tenant, digest) / MANIFEST
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise RegistryError(f"tenant {tenant!r} has no release {digest[:12]} in {self.root}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ReleaseRejected(f"{path} is damaged: it no longer has the digest it is filed under")
        manifest = ReleaseManifest.from_bytes(data)
        if manifest.tenant != tenant:
            raise ReleaseRejected(f"release {digest[:12]} belongs to tenant {manifest.tenant!r}, not to {tenant!r}")
        return manifest

    def releases(self, tenant: str) -> list[str]:
        """Digests of every complete release of `tenant`, sorted."""
        folder = self._tenant_folder(tenant)
        return sorted(path.parent.name for path in folder.glob(f"{'[0-9a-f]' * 64}/{MANIFEST}"))

    def ledger(self, tenant: str) -> Ledger:
        """The nights of `tenant` that ended; none before its first."""
        return Ledger(self._tenant_folder(tenant) / _NIGHTS)

    # --- writing ------------------------------------------------------------------------------------------------------
    def reserve_engine_id(self, tenant: str, weights: Path) -> int:
        """An adapter id that no other release in this registry has; the same weights of a tenant get the same id again.

        vLLM takes an id that it knows as already loaded, so an id is never used for other weights.
        """
        check_tenant(tenant)
        with writing(self.root / _ENGINE_IDS, "reserve an adapter id") as folder:
            return adapter_ids.reserve(folder, f"{tenant} {describe_file(weights).sha256}")

    def add(self, source: Path, describe: Callable[[int], ReleaseManifest]) -> str:
        """File the adapter in `source` as a release and return its digest; the pointer does not change.

        `describe(engine_id)` returns the manifest, which names the files to take from `source`. What serving would
        refuse is refused here (`ReleaseRejected`). Filing the same release again changes nothing. After a failure (a
        full disk, a crash) the release is not in the registry.
        """
        tenant = describe(0).tenant
        manifest = describe(self.reserve_engine_id(tenant, source / WEIGHTS))
        with writing(self._tenant_folder(tenant), "file the release") as folder:
            target = folder / manifest.digest
            if (target / MANIFEST).exists():
                return manifest.digest
            draft = folder / f".{manifest.digest}.tmp"
            shutil.rmtree(draft, ignore_errors=True)  # of a writer that was killed
            try:
                draft.mkdir()
                for entry in manifest.files:
                    _copy_durably(source, draft, entry.name)
                write_durably(draft / MANIFEST, manifest.to_bytes())
                verify_release(
                    draft, tenant=tenant, digest=manifest.digest, base_model=manifest.base_model, max_rank=manifest.rank
                )
                sync_folder(draft)
                draft.rename(target)
                sync_folder(folder)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            return manifest.digest

    def move_pointer(self, tenant: str, expected: Pointer, **changes: object) -> Pointer:
        """Replace the pointer by `expected` with `changes`; `PointerConflict` when it is no longer `expected`."""
        with writing(self._tenant_folder(tenant), "move the pointer") as folder:
            self.create()
            if (found := self.pointer(tenant)) != expected:
                raise PointerConflict(
                    f"pointer of {tenant!r} is at epoch {found.epoch}, expected {expected.epoch}: read it again and decide anew"
                )
            moved = replace(expected, epoch=expected.epoch + 1, **changes)  # type: ignore[arg-type]
            for digest in (moved.stable, moved.canary):
                if digest is not None:
                    self.manifest(tenant, digest)
            replace_durably(folder / "pointer.json", json.dumps(asdict(moved), sort_keys=True).encode())
            return moved

    # --- inside -------------------------------------------------------------------------------------------------------
    def _tenant_folder(self, tenant: str) -> Path:
        return self.root / check_tenant(tenant)


def _read_small(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_POINTER_BYTES:
        raise ValueError(f"it is not a regular file of at most {_MAX_POINTER_BYTES} bytes")
    return path.read_bytes()


def _copy_durably(source: Path, target: Path, name: str) -> None:
    """Copy the file `name`, which must not name a folder, from one folder into the other."""
    if Path(name).name != name:
        raise ReleaseRejected(f"the manifest names the file {name!r}; a file of a release has no folder in its name")
    with (source / name).open("rb") as old, (target / name).open("wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        os.fsync(new.fileno())
