"""Whether bytes can hold a finding at all: the one question asked of everything, so it is answered at hundreds of MB/s.

The bytes may be a whole OTLP request as received: what a kind needs (`Trigger`) is needed in its protobuf too, and in JSON inside
it. Each pattern begins with one rare byte, which Python finds with memchr, and looks around from there; digits are first made
the same byte. It may say yes too often, never no wrongly.
"""

from __future__ import annotations

import re

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
# JSON may spell an ASCII character as \u0040. Whatever is in such a text, it has to be read to be known.
_ESCAPED = re.compile(rb"\\u00[2-7]")
# Ids are hexadecimal, and every second one has seven digits in a row: 32 or 64 places, or the five groups of a UUID. Dates too.
_HEX = rb"[0-9a-f]"
_ID = re.compile(rb"(?<!H)(?:H{32}|H{64}|H{8}-H{4}-H{4}-H{4}-H{12}|20[0-9]{2}-[01][0-9]-[0-3][0-9])(?!H)".replace(b"H", _HEX))
EVERYTHING = Trigger.AT | Trigger.DIGITS | Trigger.DOTS | Trigger.COLONS | Trigger.TOKEN


def triggers_in(raw: bytes) -> Trigger:
    """Which triggers `raw` holds; without any, no kind can be found in it."""
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
    """Whether there are seven digits that are no part of an id."""
    for match in _SEVEN.finditer(zeroed):
        start, end = match.span()
        first = max(0, start - 64)
        if not any(found.start() <= start and end <= found.end() for found in _ID.finditer(raw, first, end + 64)):
            return True
    return False
