"""The process that `parallel_reading` starts: its task comes on standard input, its counts go to standard output."""

from __future__ import annotations

import pickle
import sys

from nightschool.errors import NightschoolError
from nightschool_nightly.episodes.counts import ReadCounts
from nightschool_nightly.episodes.dead_letters import DeadLetters
from nightschool_nightly.episodes.ingest import RecordReader
from nightschool_nightly.episodes.tables import RawTables

_MEMORY_MIB = 256  # half of what the night's own process has: this one only inserts, and three of them may run


def main() -> None:
    """Fill the tables and keep them for the parent; an error of ours is the answer, so that the parent raises it."""
    folder, stream, tenant, parts = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
    tables, counts, dead = RawTables(folder, memory_mib=_MEMORY_MIB), ReadCounts(), DeadLetters()
    answer: object = (counts, dead)
    try:
        with stream:
            RecordReader(tenant, tables, counts, dead).read(stream, parts)
    except NightschoolError as error:
        answer = error
    tables.keep()
    sys.stdout.buffer.write(pickle.dumps(answer))


if __name__ == "__main__":
    main()
