"""A file of values that are written in order and read back by place: what is too large to carry through a join.

Beside the join's narrow columns stands only where each content lies, so that neither its memory nor its sorting grows with the
content. Nothing but the process that wrote the file reads it.
"""

from __future__ import annotations

import marshal
import os
from pathlib import Path
from typing import Any

_BUFFER_BYTES = 1 << 20
_READ_BYTES = 4096  # most contents in one call to the system, and no more than a page of the disk
_LENGTH_BYTES = 4


class Spool:
    """Plain values (None, numbers, text, bytes, and lists, tuples and dicts of these) in a file of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb+", buffering=_BUFFER_BYTES)
        self._end = self._flushed = 0

    def put(self, value: Any) -> int:
        """Write `value` and return its place."""
        # marshal is the fastest there is for plain values, and cannot name a class: reading never runs anything.
        encoded = marshal.dumps(value)
        place = self._end
        self._file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)
        self._end += _LENGTH_BYTES + len(encoded)
        return place

    def get(self, place: int) -> Any:
        """The value at `place`."""
        if place >= self._flushed or self._flushed < self._end:
            self._file.flush()
            self._flushed = self._end
        head = os.pread(self._file.fileno(), _READ_BYTES, place)
        size = int.from_bytes(head[:_LENGTH_BYTES], "little")
        encoded = head[_LENGTH_BYTES : _LENGTH_BYTES + size]
        while len(encoded) < size:
            encoded += os.pread(self._file.fileno(), size - len(encoded), place + _LENGTH_BYTES + len(encoded))
        return marshal.loads(encoded)  # noqa: S302 - bytes that this object wrote

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)
