"""Locks on folders that may be deleted while a lock is awaited."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nightschool_serving.releases.folder_lock import FolderLock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "release"
    path.mkdir()
    return path


def test_a_held_folder_cannot_be_locked_for_deletion(folder: Path) -> None:
    """Any number of holders; deleting waits for nobody and is refused until the last has let go."""
    first, second = FolderLock.shared(folder), FolderLock.shared(folder)
    first.close()
    with pytest.raises(BlockingIOError):
        FolderLock.exclusive(folder)
    second.close()
    FolderLock.exclusive(folder).close()


@pytest.mark.parametrize("made_again", [False, True])
def test_a_folder_deleted_while_its_lock_was_awaited_is_not_held(folder: Path, made_again: bool) -> None:
    """The lock would be on a folder that nobody can find, even when there is a new one of the same name."""
    deleting = FolderLock.exclusive(folder)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(FolderLock.shared, folder)
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        folder.rename(folder.with_name("doomed"))
        if made_again:
            folder.mkdir()
        deleting.close()
        with pytest.raises(FileNotFoundError):
            waiting.result(30)


def test_a_missing_folder_cannot_be_held(tmp_path: Path) -> None:
    """There is nothing to lock."""
    with pytest.raises(FileNotFoundError):
        FolderLock.shared(tmp_path / "missing")
