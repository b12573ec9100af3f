"""Reads the options of an item's TOML table, and says what is wrong with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from nightschool.errors import RubricError

T = TypeVar("T")

_IN_WORDS: Mapping[type, str] = {str: "a text", bool: "true or false", int: "a whole number", list: "a list", dict: "a table"}


def read_option(options: Mapping[str, Any], name: str, kind: type[T], default: T | None = None, *, must_be: str = "") -> T:
    """The option `name`, which must be of type `kind`; `must_be` says what is allowed where the type does not."""
    value = options.get(name, default)
    # In Python true is also the integer 1; in a rubric it is a mistake.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "missing" if value is None else repr(value)
        raise RubricError(f"{name} is {found}; it must be {must_be or _IN_WORDS[kind]}")
    return value


def refuse_unknown(owner: str, options: Collection[str], allowed: Collection[str]) -> None:
    """`RubricError` for an option that `owner` does not have: a misspelled option must not be ignored."""
    if unknown := sorted(set(options) - set(allowed)):
        raise RubricError(f"{owner} has the unknown option {unknown[0]!r}; allowed are {', '.join(sorted(allowed))}")
