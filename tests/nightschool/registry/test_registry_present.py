"""Whether a registry is there at all, and pointers that nobody should have to read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nightschool.errors import RegistryError
from nightschool.registry.folder import Pointer, Registry


def test_a_folder_without_a_registry_is_told_from_an_empty_one(tmp_path: Path) -> None:
    """Missing or empty is an error that says how to make one; a registry that was made, or written to, is there."""
    registry = Registry(tmp_path / "registry")
    for _ in range(2):
        with pytest.raises(RegistryError, match="mount the registry there, or make an empty one with: mkdir -p"):
            registry.check_present()
        registry.root.mkdir(exist_ok=True)
    registry.create()
    registry.create()
    registry.check_present()
    written = Registry(tmp_path / "written")
    written.move_pointer("acme", Pointer(), frozen=True)
    written.check_present()


def nested(path: Path) -> None:
    path.write_text("[" * 30_000)


def endless(path: Path) -> None:
    with path.open("w") as file:
        file.truncate(1 << 40)


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [nested, endless, pipe, Path.mkdir])
def test_a_pointer_that_cannot_be_read_is_an_error_of_the_registry(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Too deep, too large, or no file: never another exception, never a reader that waits."""
    (tmp_path / "acme").mkdir()
    damage(tmp_path / "acme" / "pointer.json")
    with pytest.raises(RegistryError, match="is not a pointer"):
        Registry(tmp_path).pointer("acme")
