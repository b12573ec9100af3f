"""How long the demo will take on this machine: measured with products before it starts, and by its own parts later."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nightschool.dtype import AUTO, resolve_dtype
from nightschool.machine import Machine
from nightschool.remaining import Remaining, in_words

# Two runs of the demo with two cores give the two numbers: 1,269 s in fp32 at 247 GFLOP/s (an Intel Xeon without bf16
# instructions), and about 10 minutes in bf16 on one with AMX, which is ten times as fast in products. So a part of the
# time does not depend on products: starting processes, tokens one after the other, the optimizer.
_SECONDS_BESIDE, _GFLOP = 520.0, 185_000.0
_PLAIN_LINE_SECONDS = 30  # between two lines where there is no terminal
_MEASURE = """
import sys, time, torch
torch.set_num_threads(int(sys.argv[2]))
a, b = (torch.randn(2048, 2048).to(getattr(torch, sys.argv[1])) for _ in range(2))
begun, times = time.perf_counter(), []
while time.perf_counter() - begun < 1.5:
    start = time.perf_counter()
    a @ b
    times.append(time.perf_counter() - start)
print(2 * 2048**3 / sorted(times)[len(times) // 2] / 1e9)
"""


def measure_gflops(dtype: str, threads: int) -> float:
    """Speed of large products with PyTorch, in a process of its own: the demo itself needs no PyTorch."""
    command = [sys.executable, "-c", _MEASURE, dtype, str(threads)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def forecast(machine: Machine) -> tuple[str, float]:
    """A sentence on this machine, and how many seconds the demo will take there."""
    dtype = resolve_dtype(AUTO)
    gflops = measure_gflops(dtype, machine.cores)
    seconds = seconds_at(gflops)
    cores = f"{machine.cores} core{'s' if machine.cores > 1 else ''}"
    text = f"{machine.name}, {cores}, {dtype} at {gflops:,.0f} GFLOP/s: about {in_words(seconds)}"
    return text, seconds


def seconds_at(gflops: float) -> float:
    """Seconds of the whole demo on a machine whose large products run at `gflops`."""
    return _SECONDS_BESIDE + _GFLOP / gflops


@contextmanager
def shown(
    console: Console, what: str, num_parts: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Show what is left of `num_parts` while the block runs; it calls what it gets once for each part that is done."""
    if console.is_terminal:
        columns = TextColumn(f"{what:>9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=num_parts)
            yield lambda: bar.advance(task)
        return
    remaining, said, done = Remaining(num_parts, clock), clock(), 0

    def part_done() -> None:
        nonlocal said, done
        left, done = remaining.part_done(), done + 1
        if clock() - said >= _PLAIN_LINE_SECONDS and done < num_parts:
            said = clock()
            console.print(f"{'':>9}  {what}: {done} of {num_parts}, {left} left", highlight=False)

    yield part_done
