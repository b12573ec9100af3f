"""Counting the names and values of a JSON body in its text: the characters that separate them, outside of strings."""

from __future__ import annotations

from nightschool_collector.request.body_count import MAX_PARTS, BodyCount, too_many
from nightschool_collector.request.turns import in_steps, in_turn

# An empty object takes three characters, 72 bytes with its place in a list, and 80 more as the message made of it; names
# and values take more memory, but also more characters.
PART_BYTES = 152
_STEP_BYTES = 1 << 16  # counted at once, so that the parts that are made on the way stay small
_OTHERS = bytes(byte for byte in range(256) if byte not in b'{[,:"')


class JsonCount(BodyCount):
    """The names and values of a JSON text in UTF-8, which comes in pieces."""

    def __init__(self, limit: int = MAX_PARTS) -> None:
        self._limit = limit
        self._num_parts = 0
        self._is_in_string = False
        self._escape = b""
        """The last character, if it is a backslash that escapes the one to come."""

    @property
    def num_bytes(self) -> int:
        return self._num_parts * PART_BYTES

    def add(self, piece: bytes) -> None:
        with in_turn(len(piece)):
            for start in in_steps(range(0, len(piece), _STEP_BYTES)):
                self._num_parts += self._separators(piece[start : start + _STEP_BYTES])
                if self._num_parts > self._limit:
                    raise too_many("names and values in its JSON", self._limit)

    def finish(self) -> None: ...

    def _separators(self, text: bytes) -> int:
        """How many stand outside of strings; what is no JSON may be counted wrong, since nothing is built of it."""
        text = self._escape + text
        num_backslashes = len(text) - len(text.rstrip(b"\\"))
        self._escape = b"\\" if num_backslashes % 2 else b""
        text = text[: len(text) - len(self._escape)].replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _OTHERS)
        parts = text.split(b'"')
        outside = sum(map(len, parts[self._is_in_string :: 2]))
        self._is_in_string ^= len(parts) % 2 == 0
        return outside
