"""A file of values that are written in order and read back by place: contents that are too large to go through a join.

The rows of the join hold only the places. Nothing but the night that wrote the file reads it.
"""

from __future__ import annotations

import marshal
import os
from pathlib import Path
from typing import Any, BinaryIO

_BUFFER_BYTES = 1 << 20  # many small values in one write
_READ_BYTES = 4096  # one page of the disk, which holds most values whole: one call to the system instead of two
_LENGTH_BYTES = 4
PLACE_BITS = 48
"""The lower bits of a place: the offset in a file. The bits above are the number of the file; 0 is the spool's own."""


class Spool:
    """Plain values (None, numbers, text, bytes, and lists, tuples and dicts of these) in a file of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb+", buffering=_BUFFER_BYTES)
        self._files: list[BinaryIO] = [self._file]
        self._end = self._flushed = 0

    def put(self, value: Any) -> int:
        """Write `value` and return its place."""
        # marshal is the fastest format for plain values; it cannot name a class, so that reading never runs any code.
        encoded = marshal.dumps(value)
        place = self._end
        self._file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)
        self._end += _LENGTH_BYTES + len(encoded)
        return place

    def adopt(self, path: Path) -> int:
        """Take over the closed spool at `path`; the number to add to its places for `get` to find its values here."""
        self._files.append(path.open("rb"))
        path.unlink()  # the file exists until it is closed, and is gone even if the night is killed
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
