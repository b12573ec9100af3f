"""Releases copied from the registry to local disk and checked there, in folders named by content.

vLLM may read an adapter again in the middle of a step when it was evicted, and a failure there ends the engine. So it never
reads from the registry's mount, a folder in the cache is complete and verified or does not exist, and none is deleted while a
server on this machine holds it: holding is a shared lock on the folder, which ends with its process however that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from nightschool.errors import ReleaseRejected
from nightschool.registry.folder import Registry
from nightschool.registry.release import ADAPTER_CONFIG, WEIGHTS, BaseModel, check_digest, verify_release
from nightschool.tenants import check_tenant
from nightschool_serving.adapter import Adapter

MAX_RELEASE_BYTES = 4 << 30
_ABANDONED_AFTER_SECONDS = 3600.0


class AdapterCache:
    """Verified releases on local disk, shared by the servers of this machine."""

    def __init__(self, root: Path, registry: Registry, *, base_model: BaseModel, max_rank: int) -> None:
        self._root, self._registry = root, registry
        self._base_model, self._max_rank = base_model, max_rank
        self._held: dict[Path, int] = {}
        """File handles whose locks keep folders from being deleted."""

    def fetch(self, tenant: str, digest: str) -> Adapter:
        """The release on local disk, checked now and held; `ReleaseRejected` if it must not be loaded, `OSError` if unreadable."""
        folder = self._root / check_tenant(tenant) / check_digest(digest)
        spoiled = False
        if folder in self._held or self._hold(folder):
            try:
                return self._verified(folder, tenant, digest)
            except ReleaseRejected:
                # The disk spoiled our copy, or this server has another base model now; the registry's copy decides.
                self._let_go(folder)
                spoiled = True
        self._copy(folder, tenant, digest, replace=spoiled)
        try:
            return self._verified(folder, tenant, digest)
        except ReleaseRejected:
            self._let_go(folder)
            raise

    def drop(self, adapter: Adapter) -> None:
        """Let go of a release that left the engine, and delete it unless another server holds it."""
        self._let_go(adapter.folder)
        self._delete(adapter.folder)

    def prune(self) -> None:
        """Delete what no server on this machine holds: releases of earlier runs, and copies that a crash left half done."""
        for folder in self._root.glob("*/*"):
            abandoned = not folder.name.startswith(".") or time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_SECONDS
            if folder not in self._held and abandoned:
                self._delete(folder)

    def _copy(self, folder: Path, tenant: str, digest: str, *, replace: bool) -> None:
        """Copy the release to `folder`, which appears by one rename, verified and held."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{digest[:16]}-", dir=folder.parent))
        handle = _lock(draft, fcntl.LOCK_SH)
        try:
            _copy_files(self._registry.release_folder(tenant, digest), draft)
            self._verified(draft, tenant, digest)
            if replace:
                _remove(folder)
            draft.rename(folder)
            self._held[folder] = handle
        except BaseException as error:
            os.close(handle)
            shutil.rmtree(draft, ignore_errors=True)
            # Another server on this machine may have copied the same release first.
            if not (isinstance(error, OSError) and not isinstance(error, ReleaseRejected) and self._hold(folder)):
                raise

    def _verified(self, folder: Path, tenant: str, digest: str) -> Adapter:
        manifest = verify_release(
            folder,
            tenant=tenant,
            digest=digest,
            base_model=self._base_model,
            max_rank=self._max_rank,
            max_bytes=MAX_RELEASE_BYTES,
        )
        read = sorted(file.sha256 for file in manifest.files if file.name in (WEIGHTS, ADAPTER_CONFIG))
        return Adapter(manifest.tenant, digest, manifest.engine_id, folder, content_digest(*map(str.encode, read)))

    def _hold(self, folder: Path) -> bool:
        """Lock `folder` against deletion; False when there is none."""
        try:
            handle = _lock(folder, fcntl.LOCK_SH)
            if os.fstat(handle).st_ino == folder.stat().st_ino:  # else it was deleted while we waited for the lock
                self._held[folder] = handle
                return True
            os.close(handle)
        except FileNotFoundError:
            pass
        return False

    def _let_go(self, folder: Path) -> None:
        if (handle := self._held.pop(folder, None)) is not None:
            os.close(handle)

    def _delete(self, folder: Path) -> None:
        """Delete `folder` unless a server holds it."""
        try:
            handle = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            return
        try:
            _remove(folder)
        finally:
            os.close(handle)


def _lock(folder: Path, kind: int) -> int:
    """Open `folder` and lock it; the lock lasts until the handle is closed."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, kind)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _remove(folder: Path) -> None:
    """Delete `folder`; it is gone by one rename, so that nobody finds half of it."""
    doomed = Path(tempfile.mkdtemp(prefix=".doomed-", dir=folder.parent))
    folder.rename(doomed / folder.name)
    shutil.rmtree(doomed)


def _copy_files(source: Path, target: Path) -> None:
    """Copy the plain files of `source`; what is no plain file is refused here, because following or reading it may never end."""
    left = MAX_RELEASE_BYTES
    for path in sorted(source.iterdir()):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ReleaseRejected(f"{path.name} of release {source.name[:12]} is not a regular file")
        left -= status.st_size
        if left < 0:
            raise ReleaseRejected(f"release {source.name[:12]} has more than {MAX_RELEASE_BYTES} bytes")
        shutil.copyfile(path, target / path.name, follow_symlinks=False)


def content_digest(*parts: bytes) -> str:
    """SHA-256 over length-prefixed parts, so that no two lists of parts collide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
