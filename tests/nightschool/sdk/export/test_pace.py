"""The exporter's thread rests between pieces of work, and not while somebody waits for it."""

from __future__ import annotations

import pytest

from nightschool.sdk.export import pace
from nightschool.sdk.export.pace import WORK_S, Pace


class Clock:
    """A clock that moves only in work and in sleep, and a list of the sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(pace, "time", fake)
    return fake


def test_half_of_the_time_is_the_apps(clock: Clock) -> None:
    """After each fraction of a millisecond it rests as long as it worked; smaller pieces add up first."""
    breathe = Pace(lambda: False)
    for _ in range(10):
        clock.now_s += 0.6 * WORK_S
        breathe()
    assert clock.slept == pytest.approx([1.2 * WORK_S] * 5)


def test_a_hurry_leaves_no_rest_but_still_offers_the_interpreter(clock: Clock) -> None:
    """A sleep of 0 lets a waiting thread run without losing time."""
    breathe = Pace(lambda: True)
    for _ in range(3):
        clock.now_s += WORK_S
        breathe()
    assert clock.slept == [0.0, 0.0, 0.0]


def test_waiting_for_work_is_no_work(clock: Clock) -> None:
    """There is no rest for the time before a batch."""
    breathe = Pace(lambda: False)
    clock.now_s += 100.0
    breathe.start()
    breathe()
    assert clock.slept == []
