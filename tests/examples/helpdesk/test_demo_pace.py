"""What the demo says about how long it takes."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from nightschool.machine import Machine

HELPDESK = Path(__file__).parents[3] / "examples" / "helpdesk"


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(HELPDESK))
    return importlib.import_module("pace")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(HELPDESK))
    return importlib.import_module("demo")


def test_the_forecast_is_of_this_machine(pace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real products are measured in the type that `auto` chooses here, and the sentence names both."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    machine = Machine(cores=1, memory_bytes=1 << 34, available_bytes=1 << 34, has_bf16=True, name="a processor")
    text, seconds = pace.forecast(machine)
    assert text.startswith("a processor, 1 core, float32 at ")
    assert 0 < seconds < float("inf")


def test_a_faster_machine_is_promised_less_time(pace: Any) -> None:
    """The two runs that the forecast was made from: 21 minutes without bf16 instructions, about ten with AMX."""
    assert pace.seconds_at(247) == pytest.approx(1269, rel=0.02)
    assert pace.seconds_at(2470) == pytest.approx(600, rel=0.02)


def test_without_a_terminal_a_long_phase_says_what_is_left(pace: Any) -> None:
    """A plain line now and then and not for every message, so that a log stays readable."""
    now = [0.0]
    out = io.StringIO()
    with pace.shown(Console(file=out, width=110), "bank messages", 40, clock=lambda: now[0]) as one_done:
        for _ in range(40):
            now[0] += 2
            one_done()
    assert [line.strip() for line in out.getvalue().splitlines()] == [
        "bank messages: 15 of 40, 50 s left",
        "bank messages: 30 of 40, 20 s left",
    ]


def test_on_a_terminal_a_bar_shows_it_and_goes_away(pace: Any) -> None:
    """What it shows is counted by the block itself; afterwards the line is free for the result."""
    out = io.StringIO()
    with pace.shown(Console(file=out, width=110, force_terminal=True), "bank messages", 3) as one_done:
        for _ in range(3):
            one_done()
    assert "3/3" in out.getvalue()


def test_after_a_night_the_demo_believes_its_own_measurements(demo: Any) -> None:
    """Before the first night the forecast; then a like night for each that is left, and two answers to each message."""
    first = SimpleNamespace(night_s=0.0, day_s=100.0, of_day=lambda day: [None] * (50 if day == 1 else 20))
    second = SimpleNamespace(night_s=0.0, day_s=50.0, of_day=first.of_day)
    assert demo.left_before_night([first, second], 1000.0, 200.0) == 800
    assert demo.left_before_night([first, second], 1000.0, 2000.0) == 500
    first.night_s = 300.0
    assert demo.left_before_night([first, second], 1000.0, 2000.0) == 300 + 2 * 20 * 2.0 + 2 * 20 * 1.0
