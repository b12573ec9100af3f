"""Reading a large day with several processes: each fills tables of its own, which are then merged.

This is the side of the night's own process; `reading_process` is the other one. The runs are in the order of the
ranges, and so are the numbers that their rows get: what is joined is row for row what one process would have joined.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nightschool.errors import NightError
from nightschool.machine import read_machine
from nightschool.stream import Stream
from nightschool_nightly.episodes.counts import ReadCounts
from nightschool_nightly.episodes.dead_letters import DeadLetters
from nightschool_nightly.freeze.manifest import FrozenRange

MIN_RECORDS = 100_000
"""Records that are worth a process: fewer are read sooner than it has started and its rows are merged."""
_MAX_PROCESSES = 4  # one process alone joins and makes the episodes; beyond four readers that is the longer part
_MODULE = "nightschool_nightly.episodes.reading_process"


@dataclass(frozen=True, slots=True)
class Filled:
    """What a process has read: tables in `folder`, and its counts."""

    folder: Path
    counts: ReadCounts
    dead: DeadLetters


def count_processes(stream: Stream, parts: Sequence[FrozenRange]) -> int:
    """How many processes read `parts`; 1 where the day is small or another process cannot open the stream."""
    num_records = sum(part.end - part.start for part in parts)
    processes = min(read_machine().cores, _MAX_PROCESSES, len(parts), num_records // MIN_RECORDS)
    return processes if processes > 1 and _can_be_sent(stream) else 1


def share_out(parts: Sequence[FrozenRange], processes: int) -> list[list[FrozenRange]]:
    """`parts` in order, cut into at most `processes` runs of about the same number of records; none is empty."""
    total, taken = sum(part.end - part.start for part in parts), 0
    shares: list[list[FrozenRange]] = [[] for _ in range(processes)]
    for part in parts:
        shares[min(processes - 1, taken * processes // max(1, total))].append(part)
        taken += part.end - part.start
    return [share for share in shares if share]


class ReadingProcess:
    """A process that reads a run of ranges into `folder`. Leaving the context kills it, whatever it was doing."""

    def __init__(self, folder: Path, stream: Stream, tenant: str, parts: Sequence[FrozenRange]) -> None:
        task = pickle.dumps((folder, stream, tenant, list(parts)))
        self._folder = folder
        self._process = subprocess.Popen([sys.executable, "-m", _MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(task)
        self._process.stdin.close()

    def result(self) -> Filled:
        """What it read, once it is done; the error that stopped it is raised here."""
        assert self._process.stdout is not None
        answer = self._process.stdout.read()
        if self._process.wait() != 0:
            raise NightError(f"a process that read a part of the day ended with status {self._process.returncode}; try again")
        result = pickle.loads(answer)  # noqa: S301 - from our own child, through a pipe that nobody else has
        if isinstance(result, Exception):
            raise result
        counts, dead = result
        return Filled(self._folder, counts, dead)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _can_be_sent(stream: Stream) -> bool:
    """Whether another process can open the stream: one that can be opened twice can be pickled."""
    try:
        pickle.dumps(stream)
    except (TypeError, AttributeError, pickle.PicklingError):
        return False
    return True
