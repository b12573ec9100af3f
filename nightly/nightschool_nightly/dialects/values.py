"""The few questions that every dialect asks of a value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def text_of(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def structured(value: Any) -> Any:
    """The value of JSON text, None when it is not valid JSON; a value that is not text as it is."""
    return _from_json(value, otherwise=None)


def parsed(text: Any) -> Any:
    """The value of JSON text; text that is not valid JSON, such as broken arguments of a model, as it is."""
    return _from_json(text, otherwise=text)


def _from_json(value: Any, *, otherwise: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # a client may nest its JSON as deep as it likes
        return otherwise


def first_text(*values: Any) -> str | None:
    """The first value that is text and not empty."""
    return next((value for value in values if isinstance(value, str) and value), None)


def renamed(attributes: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The attributes that have a new name, under it; of two old names for one new name, the first counts."""
    found: dict[str, Any] = {}
    for old, new in names.items():
        if attributes.get(old) is not None:
            found.setdefault(new, attributes[old])
    return found


def called_with(value: Any) -> Any:
    """Arguments that a decorator recorded as `{"args": [...], "kwargs": {...}}`: only those by name if all have one."""
    value = parsed(value)
    if isinstance(value, dict) and set(value) == {"args", "kwargs"} and not value["args"]:
        return value["kwargs"]
    return value


def present(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that have a value."""
    return {name: value for name, value in values.items() if value is not None}
