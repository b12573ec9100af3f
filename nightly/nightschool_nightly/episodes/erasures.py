"""Erasures applied: whoever asked to be forgotten is in no episode, whatever their records say.

Which erasures a night knows is frozen with the rest of its input. One that came later stops the night instead of changing it: the
same manifest gives the same batch, or no batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import duckdb

from nightschool import semconv
from nightschool.erasure import Erasure, hash_prefix, stored_erasures
from nightschool.stream import Stream
from nightschool_nightly.freeze.manifest import NightManifest

# A person's traces: their own, whatever span of it names them; those of their conversations that name nobody; what a server
# recorded of their calls in a trace of its own. And every outcome they gave, on whosever trace.
_ERASE = (
    """CREATE TABLE forgotten AS SELECT DISTINCT trace FROM raw_spans
       WHERE subject IS NOT NULL AND sha256($prefix || subject) IN (SELECT hash FROM erased)""",
    """INSERT INTO forgotten SELECT trace FROM raw_spans
       WHERE conversation IN (SELECT conversation FROM raw_spans WHERE trace IN (SELECT trace FROM forgotten) AND conversation IS NOT NULL)
       GROUP BY trace HAVING count(subject) = 0""",
    """INSERT INTO forgotten SELECT DISTINCT trace FROM raw_spans
       WHERE side = 'server' AND subject IS NULL AND response IN
             (SELECT response FROM raw_spans WHERE trace IN (SELECT trace FROM forgotten) AND response IS NOT NULL)""",
)
_COUNT_AND_DELETE = (
    ("erased-span", "raw_spans", "trace IN (SELECT trace FROM forgotten)"),
    ("erased-event", "raw_events", "trace IN (SELECT trace FROM forgotten)"),
    (
        "erased-outcome",
        "raw_outcomes",
        """(kind = 'trace_id' AND target IN (SELECT trace FROM forgotten))
           OR sha256($prefix || (slot->>'$[3]')) IN (SELECT hash FROM erased)""",
    ),
)


def frozen_erasures(stream: Stream, manifest: NightManifest) -> frozenset[str]:
    """Hashes of the subjects that were forgotten when the night froze its input."""
    ends = {part.partition: part.end for part in manifest.ranges if part.topic == semconv.TOPIC_ERASURE}
    return forgotten_hashes(stored_erasures(stream, manifest.tenant, before=ends).values())


def erase(db: duckdb.DuckDBPyConnection, tenant: str, hashes: Iterable[str], dropped: Counter[str]) -> None:
    """Delete from the raw tables what is of the subjects with these hashes, before anything is joined; counts by name."""
    if not (erased := sorted(hashes)):
        return
    db.execute("CREATE TABLE erased AS SELECT unnest($1) AS hash", [erased])
    prefix = {"prefix": hash_prefix(tenant)}
    for statement in _ERASE:
        db.execute(statement, prefix if "$prefix" in statement else None)
    for reason, table, condition in _COUNT_AND_DELETE:
        statement = f"DELETE FROM {table} WHERE {condition} RETURNING 1"  # noqa: S608 -- names are literals above
        if count := len(db.execute(statement, prefix if "$prefix" in condition else None).fetchall()):
            dropped[reason] += count


def forgotten_hashes(erasures: Iterable[Erasure]) -> frozenset[str]:
    """Hashes of the subjects of whom everything is to be forgotten."""
    return frozenset(erasure.subject_hash for erasure in erasures if erasure.scope == "all")
