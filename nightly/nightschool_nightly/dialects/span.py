"""A span and its events in plain values: what a dialect is given to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """A part of a call with a time of its own: an event of its span, or a log record that names the span."""

    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    """Of a log record; an event of a span has none."""


@dataclass(frozen=True, slots=True)
class RawSpan:
    """One span, as it came."""

    name: str
    scope: str
    """Name of the instrumentation that made it."""
    attributes: Mapping[str, Any]
    events: tuple[Event, ...] = ()


# Twice as deep as any dialect writes. The client chooses the names, and must not be able to exhaust the stack.
_MAX_DEPTH = 16
_INDEX = re.compile(r"\d{1,6}")


def unflatten(attributes: Mapping[str, Any], prefix: str) -> Any:
    """What attributes named `prefix.a.0.b` mean: tables, and lists where every name is a number; None without any.

    Lists are in order of their numbers; a number that is missing leaves no gap, because what was there is not known.
    """
    tree: dict[str, Any] = {}
    start = prefix + "."
    for name, value in attributes.items():
        if name.startswith(start) and len(path := name[len(start) :].split(".")) <= _MAX_DEPTH:
            _plant(tree, path, value)
    return _listed(tree) if tree else None


def _plant(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for step in path[:-1]:
        inner = tree.get(step)
        if not isinstance(inner, dict):  # a value and a prefix at once: what is inside says more
            inner = tree[step] = {}
        tree = inner
    tree.setdefault(path[-1], value)


def _listed(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree and all(_INDEX.fullmatch(name) for name in tree):
        return [_listed(tree[name]) for name in sorted(tree, key=int)]
    return {name: _listed(inner) for name, inner in tree.items()}
