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
    """The value that JSON text means, None when it means none; what is structured already as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def parsed(text: Any) -> Any:
    """What JSON text means; text that is not JSON, such as a model's broken arguments, stays as it was written."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def first_text(*values: Any) -> str | None:
    """The first that is text and not empty."""
    return next((value for value in values if isinstance(value, str) and value), None)


def renamed(attributes: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The attributes that have a new name, under it; where two old names have the same new one, the first of `names` counts."""
    found: dict[str, Any] = {}
    for old, new in names.items():
        if attributes.get(old) is not None:
            found.setdefault(new, attributes[old])
    return found


def called_with(value: Any) -> Any:
    """The arguments of a function that a decorator recorded as `{"args": [...], "kwargs": {...}}`: by name where all have one."""
    value = parsed(value)
    if isinstance(value, dict) and set(value) == {"args", "kwargs"} and not value["args"]:
        return value["kwargs"]
    return value
