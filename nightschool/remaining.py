"""How long the rest of something takes, from how long its parts have taken so far, and that in words."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_RECENT = 10  # parts: a machine that other work has left, or come to, is believed after as many


class Remaining:
    """Counts parts that take about as long as each other; only for people, as it looks at the clock."""

    def __init__(self, num_parts: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_left, self._clock = num_parts, clock
        self._ends = deque([clock()], maxlen=_RECENT + 1)

    def part_done(self) -> str:
        """Call at the end of each part: how long the others take, in words."""
        self._num_left -= 1
        self._ends.append(self._clock())
        return in_words(self._num_left * (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1))


def in_words(seconds: float) -> str:
    """A duration as a person would round it: `40 s`, `6 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{round(seconds)} s" if seconds < 10 else f"{round(seconds / 5) * 5} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes / 5) * 5, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
