"""Files that are whole and on disk: what the writers of a registry share.

A writer of one folder keeps the others out by a file lock; readers never wait, because a file appears by one rename.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nightschool.errors import RegistryError


@contextmanager
def writing(folder: Path, action: str) -> Iterator[Path]:
    """Create `folder` if need be and keep other writers out; an error of the disk becomes a `RegistryError`."""
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    except RegistryError:
        raise
    except OSError as error:
        raise RegistryError(f"cannot {action} in {folder}: {error}; the registry is as it was") from error


def write_durably(path: Path, data: bytes) -> None:
    """Write `path`; when this returns, its content is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace `path`: readers see the old content or the new one, and when this returns, the new one is on disk."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        write_durably(draft, data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create_durably(path: Path, data: bytes) -> None:
    """Create `path` whole and on disk; `FileExistsError` when it is there already, which it then stays as it is."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        write_durably(draft, data)
        os.link(draft, path)  # unlike a rename, it fails where a file has the name already
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was created or renamed in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
