"""Whose thread commits next, where only one commit at a time is possible.

Appends that wait are committed together. Large ones are committed one at a time and take turns with the others, so that
a small one waits for no more than one of them. Nobody waits for a free lock: the thread that has committed appoints the
next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event, Lock
from typing import Generic, TypeVar

LARGE_APPEND_BYTES = 128 << 10  # an append that is larger than this has a commit of its own


class Waiting:
    """One append that waits for its commit."""

    def __init__(self, num_bytes: int) -> None:
        self.is_large = num_bytes > LARGE_APPEND_BYTES
        self.settled = False
        """Set by the commit that took it, whether that worked or not."""
        self.go_on = Event()
        """Set when it is settled, or when its thread is the one that commits next."""


W = TypeVar("W", bound=Waiting)


class CommitQueue(Generic[W]):
    """The appends that wait for one writer. Safe to use from several threads."""

    def __init__(self, commit: Callable[[Sequence[W]], None]) -> None:
        """`commit` settles everything that it is given, and is called by one thread at a time."""
        self._commit = commit
        self._lock = Lock()
        self._next: W | None = None
        """Whose thread commits next, or does so now."""
        self.waiting: list[W] = []

    def settle(self, one: W) -> None:
        """Return when `one` is settled, by this thread or another."""
        with self._lock:
            self.waiting.append(one)
            if self._next is None:
                self._appoint(one)
        try:
            one.go_on.wait()
            if not one.settled:
                self._commit_from(one)
        finally:
            self._leave(one)

    def _appoint(self, one: W | None) -> None:
        """Let the thread of `one` commit next. Called with the lock."""
        self._next = one
        if one is not None:
            one.go_on.set()

    def _commit_from(self, first: W) -> None:
        """Commit `first`: a large one alone, a small one with all that are small and wait."""
        with self._lock:
            taken = [one for one in self.waiting if one is first or not (one.is_large or first.is_large)]
            self.waiting = [one for one in self.waiting if one not in taken]
        try:
            self._commit(taken)
        finally:
            for one in taken:
                one.go_on.set()

    def _leave(self, one: W) -> None:
        """However it ended: the next to commit is the oldest of the other size, so that small and large take turns."""
        with self._lock:
            if one in self.waiting:  # its thread was interrupted
                self.waiting.remove(one)
            if self._next is one:
                others = [other for other in self.waiting if other.is_large != one.is_large]
                self._appoint(next(iter(others or self.waiting), None))
