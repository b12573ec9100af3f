"""Step 2 of a night: episodes out of the frozen ranges. Read, remove copies, join, and group by trace.

An outcome finds its trace by trace id, response id, episode id, join key or conversation; a server's span finds the
app's by response id. All of it inside one tenant: a trace id is chosen by the client and proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from nightschool import semconv as names
from nightschool.stream import Stream
from nightschool_nightly.episodes.assemble import Assembler, BuiltEpisode
from nightschool_nightly.episodes.counts import ReadCounts
from nightschool_nightly.episodes.dead_letters import DeadLetters
from nightschool_nightly.episodes.erasures import erase, frozen_erasures
from nightschool_nightly.episodes.ingest import RecordReader
from nightschool_nightly.episodes.join import join
from nightschool_nightly.episodes.parallel_reading import ReadingProcess, count_processes, share_out
from nightschool_nightly.episodes.tables import RawTables
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.freeze.settling import window_of


class EpisodeStore:
    """The joined records of one night. `build` fills it, `episodes` reads it; leaving its context deletes its files."""

    def __init__(self, folder: Path, *, memory_mib: int = 512) -> None:
        self.counts = ReadCounts()
        self.dead = DeadLetters()
        self._folder = folder
        self._tables = RawTables(folder, memory_mib=memory_mib)

    def close(self) -> None:
        """Drop the store and its files."""
        self._tables.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def build(self, stream: Stream, manifest: NightManifest, *, processes: int | None = None) -> None:
        """Read the tenant's records in the frozen ranges and join them. `NightError` when too many cannot be read.

        A large day is read by several processes where the stream allows it, or by `processes` of them if that is given.
        """
        tenant = manifest.tenant
        parts = [part for part in manifest.ranges if part.topic != names.TOPIC_ERASURE]
        first, *others = share_out(parts, processes or count_processes(stream, parts)) or [[]]
        with ExitStack() as running:
            helpers = [
                running.enter_context(ReadingProcess(self._folder / f"process-{number}", stream, tenant, share))
                for number, share in enumerate(others, start=1)
            ]
            RecordReader(tenant, self._tables, self.counts, self.dead).read(stream, first)
            for helper in helpers:  # in the order of the ranges: then the rows have the order of one process
                filled = helper.result()
                self.counts.add(filled.counts)
                self.dead.add_all(filled.dead)
                self._tables.merge(filled.folder)
        self.dead.check()
        self.counts.add_dropped(erase(self._tables.db, tenant, frozen_erasures(stream, manifest)))
        window_ms = window_of(manifest.settings)
        closed_ms, closed_before_ms = manifest.frozen_at_ms - window_ms, manifest.previous_frozen_ms - window_ms
        self.counts.add_dropped(
            join(self._tables.db, closed_ns=closed_ms * 1_000_000, closed_before_ns=closed_before_ms * 1_000_000)
        )

    def episodes(self, tenant: str) -> Iterator[BuiltEpisode]:
        """Every trace that holds a model call with content, in order of trace id."""
        return Assembler(tenant, self._tables, self.counts).episodes()
