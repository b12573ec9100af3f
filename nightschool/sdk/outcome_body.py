"""The JSON body of an outcome, out of what an app gives `nightschool.outcome`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any


def _join_key(key: tuple[str, object] | Mapping[str, str] | None) -> dict[str, Any] | None:
    if isinstance(key, tuple):
        ns, name = key
        return {"ns": ns, "id": str(name)}
    return dict(key) if key else None


def _edit(text: str | None, messages: Sequence[Mapping[str, Any]] | None, original: str | None) -> dict[str, Any]:
    edit: dict[str, Any] = {} if text is None else {"final_text": text}
    edit |= {} if messages is None else {"final_messages": [dict(message) for message in messages]}
    return edit if original is None else edit | {"original_sha256": hashlib.sha256(original.encode()).hexdigest()}
