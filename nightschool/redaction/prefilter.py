"""Whether bytes can hold a finding at all. This is asked of everything, so it is answered at hundreds of MB/s.

The bytes may be a whole OTLP request as received: what a kind needs (`Trigger`) is there in the protobuf too, and in
JSON inside it. Each pattern begins with one rare byte, which Python finds with memchr, and looks around from there; all
digits are first turned into the same byte. A wrong yes is possible and costs only time; a wrong no is not possible.

Where google-re2 is installed (the collector's extra brings it), one pass of its automaton says no three times as fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from nightschool.redaction.kinds import Trigger

_ZEROED = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))
_SEVEN = re.compile(rb"0(?:[ .()/-]{0,2}0){6}")
_QUAD = re.compile(rb"\.0{1,3}\.0{1,3}\.0")
_ADDRESS = re.compile(rb"@(?=[A-Za-z0-9_\\\x80-\xff][A-Za-z0-9_\\\x80-\xff-]{0,600}\.)(?<=[A-Za-z0-9_.%+'\x80-\xff-]@)")
_LOGIN = re.compile(rb"://[^\s/@\"'<>]{1,330}@")
_COLONS = re.compile(rb":[0-9A-Fa-f]{0,4}:")
_TOKENS = (
    re.compile(rb"-(?:(?<=sk-)|(?<=glpat-)|(?<=xox[abeoprs]-)|(?<=xapp-)|(?<=ns-)|----BEGIN)(?=[A-Za-z0-9_ -]{10})"),
    re.compile(rb"_(?=[A-Za-z0-9_]{16})(?:(?<=gh[pousr]_)|(?<=_pat_)|(?<=_live_)|(?<=_test_)|(?<=npm_)|(?<=hf_))"),
    re.compile(rb"A(?:KIA|SIA|BIA|CCA|Iza)(?=[A-Za-z0-9_-]{16})"),
    re.compile(rb"J(?<=eyJ)(?=[A-Za-z0-9_-]{8})"),
)
# JSON may write an ASCII character as \u0040. What such a text holds is known only after reading it.
_ESCAPED = re.compile(rb"\\u00[2-7]")
# Not numbers: hexadecimal ids of 32 or 64 places, UUIDs, and dates. Half of all ids have seven digits in a row.
_HEX = rb"[0-9a-f]"
_ID = re.compile(rb"(?<!H)(?:H{32}|H{64}|H{8}-H{4}-H{4}-H{4}-H{12}|20[0-9]{2}-[01][0-9]-[0-3][0-9])(?!H)".replace(b"H", _HEX))
EVERYTHING = Trigger.AT | Trigger.DIGITS | Trigger.DOTS | Trigger.COLONS | Trigger.TOKEN
# All of the above as one automaton. RE2 has no look-behind and no look-ahead, so each part matches a little more.
_ANY = rb"|".join(
    (
        rb"@[A-Za-z0-9_\\\x80-\xff][A-Za-z0-9_\\\x80-\xff-]*\.",
        rb"://[^\s/@\"'<>]+@",
        rb"[0-9](?:[ .()/-]{0,2}[0-9]){6}",
        rb"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]",
        rb":[0-9A-Fa-f]{0,4}:",
        rb"(?:sk|glpat|xox[abeoprs]|xapp|ns)-[A-Za-z0-9_ -]{10}",
        rb"-----BEGIN",
        rb"(?:gh[pousr]|_pat|_live|_test|npm|hf)_[A-Za-z0-9_]{16}",
        rb"A(?:KIA|SIA|BIA|CCA|Iza)[A-Za-z0-9_-]{16}",
        rb"eyJ[A-Za-z0-9_-]{8}",
        rb"\\u00[2-7]",
    )
)
_MIN_RE2_BYTES = 256  # from here on a call of RE2 costs less than the passes that it saves


def triggers_in(raw: bytes) -> Trigger:
    """The triggers that `raw` holds; without any, no kind can be found in it."""
    if len(raw) >= _MIN_RE2_BYTES and (automaton := _automaton()) is not None and not _may_hold(automaton, raw):
        return Trigger(0)
    return _triggers_in(raw)


def _triggers_in(raw: bytes) -> Trigger:
    found = Trigger(0)
    if _ADDRESS.search(raw) or _LOGIN.search(raw):
        found |= Trigger.AT
    zeroed = raw.translate(_ZEROED)
    if _has_number(raw, zeroed):
        found |= Trigger.DIGITS
    if _QUAD.search(zeroed):
        found |= Trigger.DOTS
    if _COLONS.search(raw):
        found |= Trigger.COLONS
    if any(pattern.search(raw) for pattern in _TOKENS):
        found |= Trigger.TOKEN
    return EVERYTHING if _ESCAPED.search(raw) else found


def _has_number(raw: bytes, zeroed: bytes) -> bool:
    """Whether there are seven digits that are not part of an id."""
    return any(not _is_in_id(raw, *match.span()) for match in _SEVEN.finditer(zeroed))


def _is_in_id(raw: bytes, start: int, end: int) -> bool:
    nearby = _ID.finditer(raw, max(0, start - 64), end + 64)
    return any(found.start() <= start and end <= found.end() for found in nearby)


@cache
def _automaton(also: bytes = b"") -> Callable[[bytes], Any] | None:
    """A function that finds the matches of `_ANY` and of the pattern `also`; None without google-re2."""
    try:
        import re2
    except ModuleNotFoundError:
        return None
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes are bytes
    options.never_capture = True
    finder: Callable[[bytes], Any] = re2.compile(_ANY + (b"|" + also if also else b""), options).finditer
    return finder


def _may_hold(automaton: Callable[[bytes], Any], raw: bytes) -> bool:
    return next(_places(automaton, raw), None) is not None


def _places(automaton: Callable[[bytes], Any], raw: bytes) -> Iterator[tuple[int, int]]:
    for match in automaton(raw):
        start, end = match.span()
        if not (48 <= raw[start] <= 57 and _is_in_id(raw, start, end)):  # a match that starts with a digit is a number
            yield start, end


def places_in(raw: bytes, *, also: bytes = b"") -> list[tuple[int, int]] | None:
    """Start and end of every trigger, and of every match of the pattern `also`, in a large message.

    They are in order and do not overlap. A part of the message that touches none of them holds no finding. This costs
    as much as `triggers_in`, whose answer for a large message is nearly always yes. None without google-re2.
    """
    automaton = _automaton(also)
    return None if automaton is None else list(_places(automaton, raw))
