"""Large requests take turns where only Python works on them, so that small ones never wait for more than one of them.

Threads share one interpreter: two large requests at a time are no faster than one after the other, and whoever sends
many would slow everybody down. Waiting for the stream is no such work, and is done outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

LARGE_BYTES = 64 << 10  # more than a usual batch; as much as an interpreter counts and splits in a few milliseconds
_turn = RLock()


@contextmanager
def in_turn(num_bytes: int) -> Iterator[None]:
    """Run the block when no other thread is in it; at once for a request (or a piece of one) that is not large."""
    if num_bytes <= LARGE_BYTES:
        yield
    else:
        with _turn:
            yield
