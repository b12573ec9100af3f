"""A large day is read by several processes: each reads a run of the frozen ranges into a store of its own, which are then merged.

The runs are in the order of the ranges, and so are the places that their rows get: what is joined is what one process would have
joined, row for row.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nightschool.errors import NightError, NightschoolError
from nightschool.stream import Stream
from nightschool_nightly.freeze.manifest import FrozenRange

if TYPE_CHECKING:
    from nightschool_nightly.episodes.dead_letters import DeadLetters
    from nightschool_nightly.episodes.store import ReadCounts

WORTH_A_HELPER = 100_000
"""Records; fewer are read sooner than a process has started and its rows are merged."""
_MOST = 4  # the join and the reading of episodes are one process's, and the longer part beyond this
_MEMORY_MIB = 256


@dataclass(frozen=True, slots=True)
class Filled:
    """What a helper read."""

    folder: Path
    counts: ReadCounts
    dead: DeadLetters


def how_many(stream: Stream, parts: Sequence[FrozenRange]) -> int:
    """The number of processes to read `parts` with; 1 where the day is small or another process cannot open the stream."""
    processes = min(
        len(os.sched_getaffinity(0)), _MOST, len(parts), sum(part.end - part.start for part in parts) // WORTH_A_HELPER
    )
    return processes if processes > 1 and _message(stream) is not None else 1


def share_out(parts: Sequence[FrozenRange], processes: int) -> list[list[FrozenRange]]:
    """`parts` in order, cut into at most so many runs of about the same number of records; none of them is empty."""
    total, taken = sum(part.end - part.start for part in parts), 0
    shares: list[list[FrozenRange]] = [[] for _ in range(processes)]
    for part in parts:
        shares[min(processes - 1, taken * processes // max(1, total))].append(part)
        taken += part.end - part.start
    return [share for share in shares if share]


class Helper:
    """A process that reads a run of ranges. Leaving the context ends it, whatever it was doing."""

    def __init__(self, folder: Path, stream: Stream, tenant: str, parts: Sequence[FrozenRange]) -> None:
        message = pickle.dumps((folder, stream, tenant, list(parts)))
        self._folder = folder
        command = [sys.executable, "-m", "nightschool_nightly.episodes.parallel_reading"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(message)
        self._process.stdin.close()

    def result(self) -> Filled:
        """What it read, when it is done; the error that stopped it, raised here."""
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        if self._process.wait() != 0:
            raise NightError(f"a process that read a part of the day ended with status {self._process.returncode}; try again")
        result = pickle.loads(said)  # noqa: S301 - from our own child, through a pipe that nobody else has
        if isinstance(result, Exception):
            raise result
        return Filled(self._folder, *result)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _message(stream: Stream) -> bytes | None:
    """The stream as another process can open it; None for one that it cannot."""
    try:
        return pickle.dumps(stream)
    except (TypeError, AttributeError, pickle.PicklingError):
        return None


def main() -> None:
    """Read what standard input names; tell the counts, or the error, on standard output."""
    from nightschool_nightly.episodes.store import EpisodeStore

    folder, stream, tenant, parts = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    store = EpisodeStore(folder, memory_mib=_MEMORY_MIB)
    result: object
    try:
        with stream:
            store.fill(stream, tenant, parts)
        result = (store.counts, store.dead)
    except NightschoolError as error:
        result = error
    store.keep()
    sys.stdout.buffer.write(pickle.dumps(result))


if __name__ == "__main__":
    main()
