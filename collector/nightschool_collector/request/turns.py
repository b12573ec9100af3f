"""Large requests take turns where only Python works on them, and let small ones pass.

Threads share one interpreter: two large requests at a time are no faster than one after the other, and whoever sends
many would slow everybody down. So one at a time is worked on, in short steps, and between two steps it waits until no
small request is being worked on. Waiting for the stream is no such work, and is done outside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self, TypeVar

T = TypeVar("T")
LARGE_BYTES = 64 << 10  # more than a usual batch; as much as an interpreter counts and splits in a few milliseconds
STEP_ITEMS = 128  # of a large request, between which small ones may pass: less than a millisecond of work
# A large request waits for so long at first, and then for four times as long as it was worked on: it has a fifth of the
# time at least, however many small ones there are. A small one takes less than the longest wait.
_FIRST_WAIT_S, _WAIT_PER_WORK, _LONGEST_WAIT_S = 0.005, 4.0, 0.02


class SmallRequests:
    """The small requests that are being worked on. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: set[Work] = set()
        self._none = threading.Event()
        self._none.set()

    def add(self, work: Work) -> None:
        with self._lock:
            self._works.add(work)
            self._none.clear()

    def discard(self, work: Work) -> None:
        with self._lock:
            self._works.discard(work)
            if not self._works:
                self._none.set()

    def wait_for_none(self, seconds: float) -> None:
        """Return when there is none, or after so many seconds."""
        self._none.wait(seconds)

    @property
    def is_empty(self) -> bool:
        return self._none.is_set()


_small = SmallRequests()
_turn = threading.RLock()
_thread = threading.local()


class Work:
    """The work on one request; others know of it inside its context."""

    def __init__(self, num_bytes: int) -> None:
        """A request that came with few bytes is small until it calls `give_way`."""
        self._is_small = num_bytes <= LARGE_BYTES
        self._resumed_s = time.monotonic()
        self._credit_s = _FIRST_WAIT_S

    def __enter__(self) -> Self:
        if self._is_small:
            _small.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._release_others()

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """Inside, this thread does the work."""
        _thread.work = self
        try:
            yield
        finally:
            _thread.work = None

    def _release_others(self) -> None:
        if self._is_small:
            self._is_small = False
            _small.discard(self)

    def give_way(self) -> None:
        """Wait until no small one is being worked on, but not for long; nobody waits for this one from here on."""
        self._release_others()
        if not _small.is_empty:
            began = time.monotonic()
            self._credit_s = min(self._credit_s + _WAIT_PER_WORK * (began - self._resumed_s), _LONGEST_WAIT_S)
            _small.wait_for_none(self._credit_s)
            self._resumed_s = time.monotonic()
            self._credit_s -= self._resumed_s - began


@contextmanager
def in_turn(num_bytes: int) -> Iterator[None]:
    """Run the block when no other thread is in it; at once for a request (or a piece of one) that is not large."""
    if num_bytes <= LARGE_BYTES:
        yield
    else:
        give_way()
        with _turn:
            yield


def in_steps(items: Iterable[T], per_step: int = 1) -> Iterator[T]:
    """The items of a large request; between two steps of so many items it gives way."""
    for number, item in enumerate(items):
        if number and number % per_step == 0:
            give_way()
        yield item


def give_way() -> None:
    """Between two steps of a large request: wait until no small one is being worked on, but not for long."""
    work: Work | None = getattr(_thread, "work", None)
    if work is not None:
        work.give_way()
