"""What a night shows while it runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from nightschool_nightly.progress import Progress
from nightschool_nightly.training.metrics import StepMetrics

LEARNED = StepMetrics(2, 0.25, 0.5, 8, 0, 2, {"kept": 3, "uniform": 1}, 1.25, 0.031, 0, 0, 110, 940, 0.5, 0.125)
UNKNOWN = StepMetrics(3, None, None, 8, 8, 0, {"kept": 0, "unscored": 4}, None, None, 0, 0, 0, 0, None, None)


def test_a_step_is_a_row_under_the_heading() -> None:
    """Each metric stands under its heading, and what the rest takes; what is unknown is a dash and never 0."""
    out, times = io.StringIO(), iter([0.0, 75.0, 100.0])
    progress = Progress(Console(file=out, width=110), clock=lambda: next(times))
    progress.heading(4)
    progress.step(LEARNED, 6)
    progress.step(UNKNOWN, 6)
    heading, learned, unknown = (line.split() for line in out.getvalue().splitlines())
    assert heading == ["step", "left", "reward", "right", "signal", "entropy", "KL", "mismatch", "tokens", "/", "padded"]
    assert learned == ["3/6", "4", "min", "0.25", "50%", "3/4", "1.25", "0.125", "0.031", "110", "/", "940", "(9x)"]
    assert unknown == ["4/6", "2", "min", "-", "-", "0/4", "-", "-", "-", "0", "/", "0", "(-)"]


def test_events_are_lines_of_json_once_they_are_watched(tmp_path: Path) -> None:
    """Phases and steps go into the file from then on; notes are for people only, and markup in them is only text."""
    out = io.StringIO()
    progress = Progress(Console(file=out, width=110))
    progress.phase("freeze", "before")
    events = tmp_path / "night" / "events.jsonl"
    progress.watch(events)
    progress.phase("learn", "[bold]6 steps")
    progress.note("left out: 3")
    progress.step(LEARNED, 6)
    found = [json.loads(line) for line in events.read_text().splitlines()]
    assert found == [{"phase": "learn", "text": "[bold]6 steps"}, {"phase": "step", "step": 2}]
    assert "[bold]6 steps" in out.getvalue() and "left out: 3" in out.getvalue()
