"""Releases copied from the registry to local disk and checked there, in folders named by content.

vLLM may read an adapter again in the middle of a step when it was evicted, and a failure there ends the engine. So it never
reads from the registry's mount, and a folder in the cache is complete and verified, or does not exist.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
from pathlib import Path

from nightschool.errors import ReleaseRejected
from nightschool.registry import Registry, content_digest
from nightschool.release import ADAPTER_CONFIG, WEIGHTS, BaseModel, check_digest, check_tenant, verify_release
from nightschool_serving.routing import Adapter

MAX_RELEASE_BYTES = 4 << 30


class AdapterCache:
    """Verified releases on local disk. Never deletes a good one: the engine may be holding its path."""

    def __init__(self, root: Path, registry: Registry, *, base_model: BaseModel, max_rank: int) -> None:
        self._root, self._registry = root, registry
        self._base_model, self._max_rank = base_model, max_rank

    def fetch(self, tenant: str, digest: str) -> Adapter:
        """The release on local disk, checked now; `ReleaseRejected` if it must not be loaded, `OSError` if it cannot be read."""
        folder = self._root / check_tenant(tenant) / check_digest(digest)
        if folder.exists():
            try:
                return self._verified(folder, tenant, digest)
            except ReleaseRejected:
                # The disk spoiled our copy, or this server has another base model now; the registry's copy decides.
                shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{digest[:16]}-", dir=folder.parent))
        try:
            _copy_release(self._registry.release_folder(tenant, digest), draft)
            self._verified(draft, tenant, digest)
            draft.chmod(0o755)
            try:
                draft.rename(folder)
            except OSError:
                # Another replica on this machine copied the same release first.
                if not folder.exists():
                    raise
            return self._verified(folder, tenant, digest)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

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


def _copy_release(source: Path, target: Path) -> None:
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
