"""The fields of an outcome's JSON body, and what each may hold.

Every error names the field, what was got and what is allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from nightschool.errors import RecordError, shown

Value = bool | int | float | str | None
TARGET_KINDS = ("trace_id", "response_id", "conversation_id", "episode_id", "join_key")
SOURCE_KINDS = ("human", "code", "llm", "system")
MAX_TEXT_BYTES = 1 << 20
MAX_METADATA_BYTES = 8 << 10
MAX_NESTING = 32  # far below Python's recursion limit, also deep in the stack of a server that reads it again
MAX_MESSAGES = 1000
_HEX = {"trace_id": 32, "span_id": 16}
_EDIT_FIELDS = ("final_text", "final_messages", "original_sha256")
_FIRST_S, _LAST_S = 946_684_800, 4_102_444_800  # the years 2000 and 2100: between them no unit looks like another
_NS_PER_UNIT = (10**9, 10**6, 10**3, 1)  # of seconds, milliseconds, microseconds, nanoseconds


# Made once: json.dumps would make an encoder at every call with these options, which costs more than the encoding.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(data: Any) -> str:
    """JSON in which the same data has always the same text: sorted keys, no spaces, no NaN."""
    return _ENCODER.encode(data)


def parse_text(value: Any, name: str, *, limit: int) -> str:
    """A text that is not empty and has at most `limit` bytes."""
    if not isinstance(value, str) or not value:
        raise RecordError(f"{name} is {shown(value)}; it must be a non-empty string")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise RecordError(f"{name} holds a lone surrogate and is not Unicode text: {error.reason}") from None
    if size > limit:
        raise RecordError(f"{name} has {size} bytes; at most {limit} are allowed")
    return value


def parse_optional_text(value: Any, name: str, *, limit: int) -> str | None:
    """The same, or None for null and for a field that is absent."""
    return None if value is None else parse_text(value, name, limit=limit)


def parse_target(target: Any) -> dict[str, Any]:
    """Exactly one of the five kinds of target, perhaps with the field that goes with it (span_id, turn)."""
    if not isinstance(target, dict):
        raise RecordError(f"target is {shown(target)}; it must be an object with exactly one of {', '.join(TARGET_KINDS)}")
    kinds = [kind for kind in TARGET_KINDS if kind in target]
    extra = {"trace_id": "span_id", "conversation_id": "turn"}.get(kinds[0]) if len(kinds) == 1 else None
    if len(kinds) != 1 or set(target) - {kinds[0], extra}:
        raise RecordError(f"target has the fields {shown(sorted(target))}; it must have exactly one of {', '.join(TARGET_KINDS)}")
    kind = kinds[0]
    if kind == "join_key":
        join = target[kind]
        if not isinstance(join, dict) or set(join) != {"ns", "id"}:
            raise RecordError(f"target.join_key is {shown(join)}; it must be {{'ns': ..., 'id': ...}}")
        return {kind: {name: parse_text(join[name], f"target.join_key.{name}", limit=256) for name in ("ns", "id")}}
    checked: dict[str, Any] = {kind: parse_text(target[kind], f"target.{kind}", limit=512)}
    if "span_id" in target:
        checked["span_id"] = parse_text(target["span_id"], "target.span_id", limit=16)
    if "turn" in target:
        turn = target["turn"]
        if not isinstance(turn, int) or isinstance(turn, bool) or not 0 <= turn < 1 << 31:
            raise RecordError(f"target.turn is {shown(turn)}; it must be a whole number from 0")
        checked["turn"] = turn
    for name, digits in _HEX.items():
        if name in checked and (not re.fullmatch(rf"[0-9a-f]{{{digits}}}", checked[name]) or not checked[name].strip("0")):
            raise RecordError(f"target.{name} is {shown(checked[name])}; it must be {digits} lowercase hex digits, not all zero")
    return checked


def parse_source(source: Any) -> tuple[str, str]:
    """The kind of the rater and their pseudonym, empty for none."""
    if not isinstance(source, dict) or set(source) - {"kind", "id"}:
        raise RecordError(f"source is {shown(source)}; it must be {{'kind': one of {', '.join(SOURCE_KINDS)}, 'id': pseudonym}}")
    if source.get("kind") not in SOURCE_KINDS:
        raise RecordError(f"source.kind is {shown(source.get('kind'))}; allowed are {', '.join(SOURCE_KINDS)}")
    rater = None if source.get("id") == "" else source.get("id")
    return source["kind"], parse_optional_text(rater, "source.id", limit=256) or ""


def parse_final(edit: Any, name: str) -> dict[str, Any]:
    """The human's own final answer, out of an `edit` or a `demonstration`: `final_text` or `final_messages`."""
    allowed = _EDIT_FIELDS if name == "edit" else _EDIT_FIELDS[:2]
    if not isinstance(edit, dict) or set(edit) - set(allowed) or ("final_text" in edit) == ("final_messages" in edit):
        also = " and, if known, 'original_sha256'" if name == "edit" else ""
        raise RecordError(f"{name} is {shown(edit)}; it must hold 'final_text' or 'final_messages', one of the two{also}")
    checked: dict[str, Any] = {}
    if "final_text" in edit:
        checked["final_text"] = parse_text(edit["final_text"], f"{name}.final_text", limit=MAX_TEXT_BYTES)
    else:
        checked["final_messages"] = _parse_messages(edit["final_messages"], f"{name}.final_messages")
    if (original := edit.get("original_sha256")) is not None:
        if not isinstance(original, str) or not re.fullmatch(r"[0-9a-f]{64}", original):
            raise RecordError(f"{name}.original_sha256 is {shown(original)}; it must be 64 lowercase hex digits")
        checked["original_sha256"] = original
    return checked


def _parse_messages(messages: Any, name: str) -> list[dict[str, Any]]:
    """Messages as the GenAI conventions write them ({role, parts}) or as chat APIs do ({role, content})."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise RecordError(f"{name} is {shown(messages)}; it must be a list of 1 to {MAX_MESSAGES} messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not _has_content(message):
            what = "{'role': ..., 'parts': [...]} or {'role': ..., 'content': text}"
            raise RecordError(f"{name}[{place}] is {shown(message)}; it must be {what}")
    _check_json(messages, name, limit=MAX_TEXT_BYTES)
    if answer_of(messages) is None:
        raise RecordError(f"{name} holds no assistant message with text; the last one is the human's final answer")
    return messages


def _has_content(message: Mapping[str, Any]) -> bool:
    return isinstance(message.get("parts"), list) or isinstance(message.get("content"), str)


def answer_of(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The text of the last assistant message; None when there is none."""
    for message in reversed(messages):
        if message["role"] == "assistant":
            return _text_of(message) or None
    return None


def _text_of(message: Mapping[str, Any]) -> str:
    if isinstance(message.get("parts"), list):
        texts = [part.get("content") for part in message["parts"] if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))
    return str(message["content"])


def parse_value(value: Any) -> Value:
    """A bool, a finite number of at most 64 bits, a text or null."""
    if isinstance(value, str):
        return parse_text(value, "value", limit=MAX_TEXT_BYTES) if value else value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return value
    raise RecordError(f"value is {shown(value)}; it must be a bool, a finite number, a string or null")


def parse_time(value: Any) -> int | None:
    """Nanoseconds since 1970, out of an RFC 3339 text or a whole number in any common unit.

    The units are seconds, milliseconds, microseconds and nanoseconds. The unit of a number is the one in which it lies
    between the years 2000 and 2100; there is never more than one. 0 means unknown (None).
    """
    if value is None or (value == 0 and type(value) is int):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        for per_unit in _NS_PER_UNIT:
            if _FIRST_S * 10**9 <= value * per_unit < _LAST_S * 10**9:
                return value * per_unit
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        except (ValueError, OverflowError):
            pass
        else:
            nanoseconds = (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000
            if 0 <= nanoseconds < 1 << 63:
                return nanoseconds or None
    raise RecordError(
        f"occurred_at is {shown(value)}; it must be RFC 3339 like '2026-01-31T12:00:00Z', or a whole number of seconds,"
        " milliseconds, microseconds or nanoseconds since 1970 that lies between the years 2000 and 2100"
    )


def parse_metadata(metadata: Any) -> dict[str, Any]:
    """A small JSON object; empty for none."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise RecordError(f"metadata is {shown(metadata)}; it must be an object, at most {MAX_NESTING} levels deep")
    _check_json(metadata, "metadata", limit=MAX_METADATA_BYTES)
    return metadata


def _check_json(data: Any, name: str, *, limit: int) -> None:
    if _nests_deeper_than(MAX_NESTING, data):
        raise RecordError(f"{name} is {shown(data)}; it must be an object, at most {MAX_NESTING} levels deep")
    try:
        size = len(canonical(data).encode())
    except (TypeError, ValueError, RecursionError):
        raise RecordError(
            f"{name} must be what JSON can carry; it holds NaN, infinity, a lone surrogate or another type"
        ) from None
    if size > limit:
        raise RecordError(f"{name} has {size} bytes; at most {limit} are allowed")


def _nests_deeper_than(levels: int, value: Any) -> bool:
    if not isinstance(value, (dict, list, tuple)):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nests_deeper_than(levels - 1, child) for child in children)
