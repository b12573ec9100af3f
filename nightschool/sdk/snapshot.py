"""A copy of what an app sends or gets, so cheap that it may be made while a user waits, and safe from what the app does next.

Nearly always it is plain data: dicts, lists, texts, numbers. The standard library's `marshal` copies that in one call in C, about
a microsecond for 8 KB, and tells its size. Reading it back, turning it into attributes and into JSON is left to the exporter's
thread. The app may change or reuse its messages the moment the copy is made.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Mapping
from typing import Any

_VERSION = 4
_MAX_KINDS = 1000
_is_pydantic: dict[type, bool] = {}
"""Classes seen; an app that makes classes for ever must not grow this for ever."""


def freeze(data: dict[str, Any]) -> bytes | None:
    """A deep copy of plain data; None when something in it is not plain (the app's own classes, say)."""
    try:
        return marshal.dumps(data, _VERSION)
    except ValueError:
        return None


def thaw(frozen: bytes) -> dict[str, Any]:
    """The data again."""
    data: dict[str, Any] = marshal.loads(frozen)  # noqa: S302 - written by `freeze` in this process, never read from outside
    return data


def fields_of(holder: Any, names: Iterable[str]) -> Mapping[str, Any]:
    """What a mapping or an object has of `names`, perhaps among other fields; nothing for None.

    An object of the `openai` client is read where pydantic keeps its fields, because asking for one that is absent raises
    an error inside and costs more than everything else here.
    """
    kind = type(holder)
    if kind is dict:
        return holder  # type: ignore[no-any-return]
    is_pydantic = _is_pydantic.get(kind)
    if is_pydantic is None and len(_is_pydantic) < _MAX_KINDS:
        is_pydantic = _is_pydantic[kind] = hasattr(kind, "__pydantic_fields__")
    if is_pydantic:
        extra = holder.__pydantic_extra__
        known: dict[str, Any] = holder.__dict__
        return {**known, **extra} if extra else known
    if holder is None:
        return {}
    return holder if isinstance(holder, Mapping) else {name: getattr(holder, name, None) for name in names}
