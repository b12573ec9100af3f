"""Finds the line of a key in a TOML text, for error messages: `tomllib` keeps no positions."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any


def line_of(text: str, at: Sequence[str]) -> int | None:
    """The line (from 1) where the statement begins that names `at`, a table or a key; None when there is none."""
    wanted = tuple(at)
    table: tuple[str, ...] = ()
    for number, is_header, tree in _statements(text):
        if is_header:
            table = _path_of(tree)
            if table[: len(wanted)] == wanted:
                return number
        elif table == wanted[: len(table)] and _holds(tree, wanted[len(table) :]):
            return number
    return None


def line_of_error(text: str, error: ValueError) -> int:
    """The line that `tomllib` names in `error`; the last line when the error is at the end of the text."""
    found = re.search(r"\(at line (\d+), column \d+\)$", str(error))
    return int(found[1]) if found else max(1, len(text.splitlines()))


def _statements(text: str) -> Iterator[tuple[int, bool, dict[str, Any]]]:
    """Each statement: its first line, whether it is a [header], and its content.

    A statement is the fewest lines that are TOML by themselves: a part of a longer one is not, because a list or a text
    is still open in it.
    """
    start, held = 1, ""
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        held = f"{held}\n{line}" if held else line
        try:
            tree = tomllib.loads(held)
        except ValueError:
            continue
        yield start, held.lstrip().startswith("["), tree
        start, held = number + 1, ""


def _path_of(header: dict[str, Any]) -> tuple[str, ...]:
    """`[a.b]` parses as {'a': {'b': {}}}, `[[a.b]]` with a list at the end: either is ('a', 'b')."""
    path: list[str] = []
    level: Any = header
    while isinstance(level, dict) and level:
        name, level = next(iter(level.items()))
        path.append(name)
    return tuple(path)


def _holds(tree: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return bool(path)
