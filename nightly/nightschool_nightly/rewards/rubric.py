"""A rubric: weighted items that score an answer, in a TOML file that a person writes, named by the hash of its content.

    task = "triage"
    [[items]]
    name = "right-queue"
    kind = "outcome"        # the answer equals what the human finally chose
    outcome = "queue"       # the outcome's name
    weight = 1.0
    [[items]]
    name = "known-queue"
    kind = "check"
    check = "one_of"        # a name in CHECKS of checks.py
    values = ["card", "fraud"]
    weight = 0.2
    hard = true             # an answer that fails it has the reward 0

reward = (sum of the weights of passed items) / (sum of all weights), or 0 when a hard item fails. An item that cannot
decide (there is no outcome of its name) leaves the answer unscored, and so does a limit that is below production's own
and cut the answer short: unknown is not zero. What is known already counts: a text that cannot become right any more has failed.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightschool.errors import RubricError
from nightschool_nightly.rewards.checks import load_check
from nightschool_nightly.rewards.items import Answer, Criterion, Prompt
from nightschool_nightly.rewards.outcome import load_outcome

KINDS: Mapping[str, Callable[[Mapping[str, Any]], Criterion]] = {
    "check": load_check,
    "outcome": load_outcome,
}
"""What a kind of item makes of its own options. A new kind is a file beside this one and a line here."""

_KEYS_OF_EVERY_ITEM = frozenset({"name", "kind", "weight", "hard"})


@dataclass(frozen=True, slots=True)
class Item:
    """One weighted line of a rubric."""

    name: str
    weight: float
    hard: bool
    """An answer that fails it has the reward 0, whatever else it passes."""
    criterion: Criterion


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of one answer, and what each item said."""

    reward: float | None
    """From 0 to 1; None when the answer is unscored."""
    items: Mapping[str, bool | None]
    """Whether it passed each item, by name; None where that could not be decided."""


@dataclass(frozen=True, slots=True)
class Rubric:
    """What a good answer to one task is."""

    task: str
    items: tuple[Item, ...]
    digest: str
    """SHA-256 of the file's parsed content: comments and layout do not change it, meaning does."""

    @property
    def outcome_names(self) -> tuple[str, ...]:
        """Outcomes this rubric needs, each once, in order of its items."""
        return tuple(dict.fromkeys(name for item in self.items for name in item.criterion.outcome_names))

    def score(self, prompt: Prompt, answer: Answer) -> Score:
        """Score one answer to a prompt."""
        if not answer.is_whole:
            return self._score_beginning(prompt, answer.text)
        passed = {item.name: item.criterion.passes(prompt, answer) for item in self.items}
        if any(verdict is None for verdict in passed.values()):
            return Score(None, passed)
        if any(item.hard and not passed[item.name] for item in self.items):
            return Score(0.0, passed)
        # Both sums add the same numbers in the same order, so an answer that passes everything has exactly 1.
        total = sum(item.weight for item in self.items)
        return Score(sum(item.weight for item in self.items if passed[item.name]) / total, passed)

    def _score_beginning(self, prompt: Prompt, beginning: str) -> Score:
        """The score of an answer of which only the beginning is known: 0 where it is that however it goes on."""
        failed = {item.name: item.criterion.fails_already(prompt, beginning) for item in self.items}
        verdicts = {name: False if has_failed else None for name, has_failed in failed.items()}
        is_lost = all(failed.values()) or any(item.hard and failed[item.name] for item in self.items)
        return Score(0.0 if is_lost else None, verdicts)


def load_rubric(path: Path) -> Rubric:
    """Read and check a rubric file; `RubricError` names the file and what to change."""
    try:
        return parse_rubric(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RubricError(f"rubric {path} cannot be read: {error}") from None
    except RubricError as error:
        raise RubricError(f"rubric {path}: {error}") from None


def parse_rubric(text: str) -> Rubric:
    """The rubric in the text of a file; `RubricError` says what to change."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RubricError(f"not valid TOML: {error}") from None
    if unknown := sorted(set(raw) - {"task", "items"}):
        raise RubricError(f"unknown key {unknown[0]!r}; allowed are task and [[items]]")
    task, tables = raw.get("task"), raw.get("items")
    if not isinstance(task, str) or not task:
        raise RubricError(f"task is {task!r}; it must be the name the app gives in nightschool.request(task=...)")
    if not isinstance(tables, list) or not tables:
        raise RubricError("a rubric needs at least one [[items]] table")
    items = tuple(_parse_item(table, number) for number, table in enumerate(tables, start=1))
    names = [item.name for item in items]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise RubricError(f"two items are named {doubled[0]!r}; names must differ")
    return Rubric(task, items, hashlib.sha256(repr(_sorted(raw)).encode()).hexdigest())


def _parse_item(table: Any, number: int) -> Item:
    if not isinstance(table, dict):
        raise RubricError(f"item {number} is {table!r}; it must be an [[items]] table")
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise RubricError(f"item {number} has no name; give it one, different from the others")
    where = f"item {number} ({name!r})"
    weight, hard = table.get("weight", 1.0), table.get("hard", False)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise RubricError(f"{where}: weight is {weight!r}; it must be a number above 0")
    if not isinstance(hard, bool):
        raise RubricError(f"{where}: hard is {hard!r}; it must be true or false")
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        found = "missing" if kind is None else repr(kind)
        raise RubricError(f"{where}: kind is {found}; allowed are {', '.join(KINDS)}")
    try:
        criterion = KINDS[kind]({key: value for key, value in table.items() if key not in _KEYS_OF_EVERY_ITEM})
    except RubricError as error:
        raise RubricError(f"{where}: {error}") from None
    return Item(name, float(weight), hard, criterion)


def _sorted(value: Any) -> Any:
    """Tables as sorted pairs, so that the order of keys does not change a digest."""
    if isinstance(value, dict):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    return [_sorted(item) for item in value] if isinstance(value, list) else value
