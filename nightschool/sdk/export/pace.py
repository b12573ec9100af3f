"""Work in the background that leaves the interpreter to the app.

A thread that wakes while another one computes waits for it up to `sys.getswitchinterval()`, which is 5 ms, and an app's
user would notice that. So the exporter's thread works for a fraction of a millisecond and then rests as long as it
worked, except in a hurry.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WORK_S = 100e-6
"""How long it works before it rests: short beside what an app takes for a request, long beside what a sleep costs."""


class Pace:
    """Call it between small pieces of work; it sleeps when a rest is due."""

    def __init__(self, is_hurried: Callable[[], bool]) -> None:
        """There is no rest while `is_hurried` says so: when somebody waits, or the queue is filling up."""
        self._is_hurried = is_hurried
        self._started_s = time.perf_counter()

    def start(self) -> None:
        """Work begins now."""
        self._started_s = time.perf_counter()

    def __call__(self) -> None:
        worked_s = time.perf_counter() - self._started_s
        if worked_s >= WORK_S:
            # A sleep of 0 also gives the interpreter to a thread that waits for it, so the app comes first even in a
            # hurry.
            time.sleep(0.0 if self._is_hurried() else worked_s)
            self.start()
