"""Parts of an outcome's JSON body, made of what an app gives `nightschool.outcome`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any


def join_key_of(key: tuple[str, object] | Mapping[str, str] | None) -> dict[str, Any] | None:
    """A join key as the body has it: `{"ns": ..., "id": ...}`; None for none."""
    if isinstance(key, tuple):
        ns, name = key
        return {"ns": ns, "id": str(name)}
    return dict(key) if key else None


def edit_of(text: str | None, messages: Sequence[Mapping[str, Any]] | None, original: str | None) -> dict[str, Any]:
    """The field `edit`: the final text or messages, and the SHA-256 of the text that was edited, where it is known."""
    edit: dict[str, Any] = {} if text is None else {"final_text": text}
    edit |= {} if messages is None else {"final_messages": [dict(message) for message in messages]}
    return edit if original is None else edit | {"original_sha256": hashlib.sha256(original.encode()).hexdigest()}


def demonstration_of(given: str | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The field `demonstration`: a text or messages."""
    if isinstance(given, str):
        return {"final_text": given}
    return {"final_messages": [dict(message) for message in given]}
