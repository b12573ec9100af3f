"""A file of values that are written in order and read back by place: what is too large to carry through a join.

Beside the join's narrow columns stands only where each content lies, so that neither its memory nor its sorting grows with the
content. Nothing but the night that wrote the file reads it.
"""

from __future__ import annotations

import marshal
import os
from pathlib import Path
from typing import Any, BinaryIO

_BUFFER_BYTES = 1 << 20
_READ_BYTES = 4096  # most contents in one call to the system, and no more than a page of the disk
_LENGTH_BYTES = 4
PLACE_BITS = 48
"""A place is the offset in a file, and above so many bits the number of the file; 0 is the spool's own."""


class Spool:
    """Plain values (None, numbers, text, bytes, and lists, tuples and dicts of these) in a file of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb+", buffering=_BUFFER_BYTES)
        self._files: list[BinaryIO] = [self._file]
        self._end = self._flushed = 0

    def put(self, value: Any) -> int:
        """Write `value` and return its place."""
        # marshal is the fastest there is for plain values, and cannot name a class: reading never runs anything.
        encoded = marshal.dumps(value)
        place = self._end
        self._file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)
        self._end += _LENGTH_BYTES + len(encoded)
        return place

    def adopt(self, path: Path) -> int:
        """Read from the closed spool at `path` too; what to add to its places for that."""
        self._files.append(path.open("rb"))
        path.unlink()  # it lives as long as it is open
        return (len(self._files) - 1) << PLACE_BITS

    def get(self, place: int) -> Any:
        """The value at `place`."""
        if self._flushed < self._end:
            self._file.flush()
            self._flushed = self._end
        file, at = self._files[place >> PLACE_BITS].fileno(), place & ((1 << PLACE_BITS) - 1)
        head = os.pread(file, _READ_BYTES, at)
        size = int.from_bytes(head[:_LENGTH_BYTES], "little")
        encoded = head[_LENGTH_BYTES : _LENGTH_BYTES + size]
        while len(encoded) < size:
            encoded += os.pread(file, size - len(encoded), at + _LENGTH_BYTES + len(encoded))
        return marshal.loads(encoded)  # noqa: S302 - bytes that this class wrote

    def keep(self) -> None:
        """Close the file and leave it, for another spool to adopt."""
        self._file.close()

    def close(self) -> None:
        """Remove the file."""
        for file in self._files:
            file.close()
        self._path.unlink(missing_ok=True)
