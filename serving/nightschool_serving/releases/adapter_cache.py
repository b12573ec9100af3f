"""Releases copied from the registry to local disk and verified there, in folders named by content.

vLLM may read an adapter again in the middle of a step when it was evicted, and a failure there ends the engine. So vLLM
never reads from the registry's mount; a folder in the cache is complete and verified or does not exist; and no folder
is deleted while a server on this machine holds its lock.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
import time
from pathlib import Path

from nightschool.errors import ReleaseRejected
from nightschool.registry.folder import Registry
from nightschool.registry.release import ADAPTER_CONFIG, WEIGHTS, BaseModel, check_digest, verify_release
from nightschool.tenants import check_tenant
from nightschool_serving.releases.adapter import Adapter
from nightschool_serving.releases.folder_lock import FolderLock

MAX_RELEASE_BYTES = 4 << 30  # far above any LoRA adapter; keeps a wrong folder in the registry from filling the disk
_ABANDONED_AFTER_SECONDS = 3600.0  # no copy takes so long: an older draft is of a server that was killed


class AdapterCache:
    """Verified releases on local disk, shared by the servers of this machine.

    Several threads may fetch and drop releases at the same time, but of one tenant only one thread at a time.
    """

    def __init__(self, root: Path, registry: Registry, *, base_model: BaseModel, dtype: str, max_rank: int) -> None:
        """`base_model`, its `dtype` and `max_rank` are what this server's engine runs; other releases are refused."""
        self.root, self._registry = root, registry
        self._base_model, self._dtype, self._max_rank = base_model, dtype, max_rank
        self._locks: dict[Path, FolderLock] = {}
        """The locks that keep this server's folders from being deleted."""

    def fetch(self, tenant: str, release: str) -> Adapter:
        """The release on local disk, verified now and held.

        `ReleaseRejected` if it must not be loaded, `OSError` if it cannot be read.
        """
        folder = self.root / check_tenant(tenant) / check_digest(release)
        if folder in self._locks or self._hold(folder):
            try:
                return self._verified(folder, tenant, release)
            except ReleaseRejected:
                # Our copy was damaged on disk, or this server has another base model now: the registry's copy decides.
                self._repair(folder, tenant, release)
        else:
            self._copy(folder, tenant, release)
        try:
            return self._verified(folder, tenant, release)
        except ReleaseRejected:
            self._let_go(folder)
            raise

    def drop(self, adapter: Adapter) -> None:
        """Let go of a release that left the engine, and delete it unless another server holds it."""
        self._let_go(adapter.folder)
        _delete_unless_held(adapter.folder)

    def prune(self) -> None:
        """Delete what no server on this machine holds: releases of earlier runs, and incomplete copies of a crash."""
        for folder in self.root.glob("*/*"):
            is_draft = folder.name.startswith(".")
            try:
                abandoned = not is_draft or time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_SECONDS
            except FileNotFoundError:
                continue  # another server was faster
            if folder not in self._locks and abandoned:
                _delete_unless_held(folder)

    def _repair(self, folder: Path, tenant: str, release: str) -> None:
        """Bring a held folder back to what the registry has.

        File by file, each by one rename, because other servers of this machine may hold and read the folder: it must
        not disappear, and their locks are on the folder itself.
        """
        draft = Path(tempfile.mkdtemp(prefix=f".{release[:16]}-", dir=folder.parent))
        lock = FolderLock.shared(draft)
        try:
            _copy_files(self._registry.release_folder(tenant, release), draft)
            self._verified(draft, tenant, release)
            wanted = {path.name for path in draft.iterdir()}
            for path in draft.iterdir():
                path.rename(folder / path.name)
            for path in folder.iterdir():
                if path.name not in wanted:
                    path.unlink()
        except BaseException:
            self._let_go(folder)
            raise
        finally:
            lock.close()
            shutil.rmtree(draft, ignore_errors=True)

    def _copy(self, folder: Path, tenant: str, release: str) -> None:
        """Copy the release to `folder`, which appears by one rename, verified and held."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{release[:16]}-", dir=folder.parent))
        lock = FolderLock.shared(draft)
        try:
            _copy_files(self._registry.release_folder(tenant, release), draft)
            self._verified(draft, tenant, release)
            draft.rename(folder)
            self._locks[folder] = lock  # the lock is on the folder, so it stays valid after the rename
        except BaseException as error:
            lock.close()
            shutil.rmtree(draft, ignore_errors=True)
            # Another server on this machine may have copied the same release first.
            if not (isinstance(error, OSError) and not isinstance(error, ReleaseRejected) and self._hold(folder)):
                raise

    def _verified(self, folder: Path, tenant: str, release: str) -> Adapter:
        manifest = verify_release(
            folder,
            tenant=tenant,
            digest=release,
            base_model=self._base_model,
            dtype=self._dtype,
            max_rank=self._max_rank,
            max_bytes=MAX_RELEASE_BYTES,
        )
        read = sorted(file.sha256 for file in manifest.files if file.name in (WEIGHTS, ADAPTER_CONFIG))
        return Adapter(manifest.tenant, release, manifest.engine_id, folder, content_digest(*map(str.encode, read)))

    def _hold(self, folder: Path) -> bool:
        """Keep `folder` from being deleted; False when there is none."""
        try:
            self._locks[folder] = FolderLock.shared(folder)
        except FileNotFoundError:
            return False
        return True

    def _let_go(self, folder: Path) -> None:
        if (lock := self._locks.pop(folder, None)) is not None:
            lock.close()


def _delete_unless_held(folder: Path) -> None:
    try:
        lock = FolderLock.exclusive(folder)
    except (BlockingIOError, FileNotFoundError):
        return
    try:
        _remove(folder)
    finally:
        lock.close()


def _remove(folder: Path) -> None:
    """Delete `folder`; its name is gone by one rename, so that no server finds an incomplete folder under it."""
    doomed = Path(tempfile.mkdtemp(prefix=".doomed-", dir=folder.parent))
    folder.rename(doomed / folder.name)
    shutil.rmtree(doomed)


def _copy_files(source: Path, target: Path) -> None:
    """Copy the regular files of `source` and refuse anything else: reading a pipe or a link may never end."""
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
    """SHA-256 over length-prefixed parts, so that two different lists of parts never give the same bytes to hash."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
