"""A rubric: weighted items that score an answer, in a TOML file a person can write, versioned by its content.

    task = "triage"
    [[items]]
    name = "right-queue"
    kind = "outcome"        # the answer equals what the human finally chose
    outcome = "queue"       # the outcome's name
    weight = 1.0
    [[items]]
    name = "known-queue"
    kind = "check"
    check = "one_of"        # exact, one_of, regex, length, json_schema
    values = ["card", "fraud"]
    weight = 0.2
    hard = true             # failing it makes the reward 0

reward = (sum of weights of passed items) / (sum of weights), or 0 when a hard item fails. An item that cannot say (no outcome of
that name) makes the answer unscored: unknown is not zero.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightschool.errors import RubricError
from nightschool_nightly.rewards.checks import Check, build_check, normal

_ITEM_KEYS = {"name", "kind", "weight", "hard"}
_OUTCOME_KEYS = {"outcome", "ignore_case"}


@dataclass(frozen=True, slots=True)
class CheckItem:
    """A deterministic check of the answer's text."""

    name: str
    weight: float
    hard: bool
    check: Check

    def passes(self, answer: str, references: Mapping[str, str]) -> bool | None:
        return self.check(answer)


@dataclass(frozen=True, slots=True)
class OutcomeItem:
    """The answer agrees with what the human finally chose; cannot say when no human did."""

    name: str
    weight: float
    hard: bool
    outcome: str
    ignore_case: bool

    def passes(self, answer: str, references: Mapping[str, str]) -> bool | None:
        if self.outcome not in references:
            return None
        return normal(answer, ignore_case=self.ignore_case) == normal(references[self.outcome], ignore_case=self.ignore_case)


Item = CheckItem | OutcomeItem


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of one answer, and how each item saw it."""

    reward: float | None
    """From 0 to 1; None when an item could not say."""
    items: Mapping[str, bool | None]


@dataclass(frozen=True, slots=True)
class Rubric:
    """What a good answer to one task is."""

    task: str
    items: tuple[Item, ...]
    digest: str
    """SHA-256 of the file's parsed content: comments and layout do not change it, meaning does."""

    @property
    def outcome_names(self) -> tuple[str, ...]:
        """Outcomes this rubric needs, in order of its items."""
        return tuple(dict.fromkeys(item.outcome for item in self.items if isinstance(item, OutcomeItem)))

    def score(self, answer: str, references: Mapping[str, str]) -> Score:
        """Score `answer`; `references` holds what the human finally chose, by outcome name."""
        seen = {item.name: item.passes(answer, references) for item in self.items}
        if any(passed is None for passed in seen.values()):
            return Score(None, seen)
        if any(item.hard and not seen[item.name] for item in self.items):
            return Score(0.0, seen)
        total = sum(item.weight for item in self.items)
        return Score(sum(item.weight for item in self.items if seen[item.name]) / total, seen)


def load_rubric(path: Path) -> Rubric:
    """Read and check a rubric file; `RubricError` names the file and what to change."""
    try:
        return parse_rubric(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RubricError(f"rubric {path} cannot be read: {error}") from None
    except RubricError as error:
        raise RubricError(f"rubric {path}: {error}") from None


def parse_rubric(text: str) -> Rubric:
    """Check the text of a rubric file."""
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
    where = f"item {number} ({name!r})"
    if not isinstance(name, str) or not name:
        raise RubricError(f"item {number} has no name")
    weight, hard = table.get("weight", 1.0), table.get("hard", False)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise RubricError(f"{where}: weight is {weight!r}; it must be a number above 0")
    if not isinstance(hard, bool):
        raise RubricError(f"{where}: hard is {hard!r}; it must be true or false")
    options = {key: value for key, value in table.items() if key not in _ITEM_KEYS}
    match table.get("kind"):
        case "check":
            try:
                return CheckItem(name, float(weight), hard, build_check(options))
            except RubricError as error:
                raise RubricError(f"{where}: {error}") from None
        case "outcome":
            if unknown := sorted(set(options) - _OUTCOME_KEYS):
                raise RubricError(f"{where}: unknown option {unknown[0]!r}; allowed are {', '.join(sorted(_OUTCOME_KEYS))}")
            outcome, fold = options.get("outcome"), options.get("ignore_case", False)
            if not isinstance(outcome, str) or not outcome or not isinstance(fold, bool):
                raise RubricError(f"{where}: outcome must be the name of an outcome, ignore_case true or false; got {options}")
            return OutcomeItem(name, float(weight), hard, outcome, fold)
        case kind:
            raise RubricError(f"{where}: kind is {kind!r}; allowed are 'check' and 'outcome'")


def _sorted(value: Any) -> Any:
    """Tables as sorted pairs, so that the order of keys does not change a digest."""
    if isinstance(value, dict):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    return [_sorted(item) for item in value] if isinstance(value, list) else value
