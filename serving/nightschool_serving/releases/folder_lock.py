"""A lock on a folder that servers of one machine share: holders keep it from being deleted."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FolderLock:
    """A file lock on an existing folder, until `close` or until the process ends, however it ends.

    The lock is on the folder itself, not on its name. While a lock is awaited another server may delete the folder, and
    a third may make a new one of the same name: then `FileNotFoundError` says that the locked folder is gone.
    """

    @classmethod
    def shared(cls, folder: Path) -> FolderLock:
        """Keep `folder` from being deleted; waits while a server is deleting it."""
        return cls(folder, fcntl.LOCK_SH)

    @classmethod
    def exclusive(cls, folder: Path) -> FolderLock:
        """Be the only holder, in order to delete `folder`; `BlockingIOError` while anybody else holds it."""
        return cls(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __init__(self, folder: Path, operation: int) -> None:
        self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._handle, operation)
            if not os.path.samestat(os.fstat(self._handle), folder.stat()):
                raise FileNotFoundError(f"{folder} was deleted while its lock was awaited")
        except BaseException:
            os.close(self._handle)
            raise

    def close(self) -> None:
        """Release the lock."""
        os.close(self._handle)
