"""What a night shows while it runs: a line for each phase, a row for each training step; the same as JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from nightschool.remaining import Remaining
from nightschool_nightly.training.advantage import GroupFate
from nightschool_nightly.training.metrics import StepMetrics

_HEADING = "  step          left  reward  right  signal  entropy    KL  mismatch   tokens / padded"


class Progress:
    """Prints to a terminal or a log alike; the file `events` gets one JSON object a line."""

    def __init__(self, console: Console, events: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._events, self._clock = console, events, clock
        self._remaining: Remaining | None = None

    def watch(self, events: Path) -> None:
        """From here on also write events to this file: a dry run has none, so it is not known from the start."""
        events.parent.mkdir(parents=True, exist_ok=True)
        self._events = events

    def phase(self, name: str, text: str) -> None:
        """A phase of the night begins."""
        self._console.print(f"[bold]{name:>9}[/]  {escape(text)}", highlight=False)
        self._event({"phase": name, "text": text})

    def note(self, text: str) -> None:
        """A line below the current phase."""
        self._console.print(f"{'':>9}  {escape(text)}", highlight=False)

    def heading(self, num_steps: int) -> None:
        """The heading of the rows of as many steps, the first of which begins now."""
        self._remaining = Remaining(num_steps, self._clock)
        self._console.print(f"[dim]{_HEADING}[/]", highlight=False)

    def step(self, metrics: StepMetrics, steps: int) -> None:
        """Training step `metrics.step` of `steps` is done."""
        total = sum(metrics.groups.values())
        left = self._remaining.part_done() if self._remaining else "-"
        saved = f"{metrics.padded_tokens / metrics.tree_tokens:.0f}x" if metrics.tree_tokens else "-"
        self._console.print(
            f"  {metrics.step + 1:>3}/{steps:<3} {left:>10} {_number(metrics.reward_mean, '.2f'):>7} {_number(metrics.success, '.0%'):>6} "
            f"{metrics.groups[GroupFate.KEPT]:>4}/{total:<3} {_number(metrics.entropy, '.2f'):>6} {_number(metrics.kl, '.3f'):>6} "
            f"{_number(metrics.mismatch, '.3f'):>8}   {metrics.tree_tokens:>5} / {metrics.padded_tokens} ({saved})",
            highlight=False,
        )
        self._event({"phase": "step", "step": metrics.step})

    def _event(self, event: dict[str, Any]) -> None:
        if self._events is not None:
            with self._events.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
