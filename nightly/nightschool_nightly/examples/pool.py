"""The examples that a night could use: their contents wait in a file, and a row each of what decides stays in memory.

A day may hold a hundred thousand of them, each with hundreds of token ids, and a night uses some hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Self

from nightschool_nightly.episodes.spool import Spool
from nightschool_nightly.examples.example import Example
from nightschool_nightly.examples.learned import hash_prompt

_values_of = attrgetter(*(item.name for item in fields(Example)))


@dataclass(frozen=True, slots=True)
class Row:
    """What decides whether an example gets a place."""

    id: str
    task: str
    cluster: str
    prompt: str
    """`hash_prompt` of the example."""
    place: int = 0
    """Where the example is in the pool."""


class Pool:
    """Examples in a file of their own, which leaving the context deletes."""

    def __init__(self, path: Path, tenant: str) -> None:
        self._tenant, self._spool = tenant, Spool(path)

    def put(self, example: Example) -> Row:
        """Put an example into the file; its row."""
        prompt = hash_prompt(self._tenant, example)
        return Row(example.id, example.task, example.cluster, prompt, self._spool.put(_values_of(example)))

    def get(self, row: Row) -> Example:
        """The example of a row."""
        return Example(*self._spool.get(row.place))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._spool.close()
