"""Work in the background that leaves the interpreter to the app.

A thread that wakes while another computes waits for it up to `sys.getswitchinterval()`, 5 ms, which an app's user would feel. So
the exporter's thread rests after every fraction of a millisecond of work, as long as it worked, unless there is a hurry.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WORK_S = 100e-6


class Pace:
    """Call it between small pieces of work; it sleeps when a rest is due."""

    def __init__(self, is_hurried: Callable[[], bool]) -> None:
        """Without rest while `is_hurried` says so: somebody is waiting, or the queue is filling up."""
        self._is_hurried = is_hurried
        self._started_s = time.perf_counter()

    def start(self) -> None:
        """Work begins now."""
        self._started_s = time.perf_counter()

    def __call__(self) -> None:
        worked_s = time.perf_counter() - self._started_s
        if worked_s >= WORK_S:
            # Even in a hurry the interpreter is offered: a sleep of nothing gives it to a thread that waits for it.
            time.sleep(0.0 if self._is_hurried() else worked_s)
            self.start()
