"""Erasures applied: a user who asked to be forgotten is in no episode, whatever their records say.

Which erasures a night knows is frozen with the rest of its input. One that came later stops the night instead of
changing it: the same manifest gives the same batch, or no batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from nightschool import semconv
from nightschool.erasure import Erasure, hash_prefix, stored_erasures
from nightschool.stream import Stream
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.freeze.manifest import NightManifest

# `forgotten_traces`, one row a trace of a user whose hash is in `erased_subjects`:
_FIND_TRACES = (
    # their own traces, whichever span of a trace names them;
    """CREATE TABLE forgotten_traces AS SELECT DISTINCT trace FROM raw_spans
       WHERE subject IS NOT NULL AND sha256($prefix || subject) IN (SELECT hash FROM erased_subjects)""",
    # traces of their conversations that name nobody, such as the turns before they logged in;
    """INSERT INTO forgotten_traces SELECT trace FROM raw_spans
       WHERE conversation IN (SELECT conversation FROM raw_spans
                              WHERE trace IN (SELECT trace FROM forgotten_traces) AND conversation IS NOT NULL)
       GROUP BY trace HAVING count(subject) = 0""",
    # and what a server recorded of their calls in a trace of its own.
    """INSERT INTO forgotten_traces SELECT DISTINCT trace FROM raw_spans
       WHERE side = 'server' AND subject IS NULL AND response IN
             (SELECT response FROM raw_spans WHERE trace IN (SELECT trace FROM forgotten_traces) AND response IS NOT NULL)""",
)
# What is deleted: everything of these traces, and every outcome that the users gave, whoever's trace it is about.
_DELETE = (
    (DropReason.ERASED_SPAN, "raw_spans", "trace IN (SELECT trace FROM forgotten_traces)"),
    (DropReason.ERASED_EVENT, "raw_events", "trace IN (SELECT trace FROM forgotten_traces)"),
    (
        DropReason.ERASED_OUTCOME,
        "raw_outcomes",
        # The fourth value of a slot is the id of its source: the rater.
        """(target_kind = 'trace_id' AND target IN (SELECT trace FROM forgotten_traces))
           OR sha256($prefix || (slot->>'$[3]')) IN (SELECT hash FROM erased_subjects)""",
    ),
)


def frozen_erasures(stream: Stream, manifest: NightManifest) -> frozenset[str]:
    """Hashes of the subjects that were forgotten when the night froze its input."""
    ends = {part.partition: part.end for part in manifest.ranges if part.topic == semconv.TOPIC_ERASURE}
    return forgotten_hashes(stored_erasures(stream, manifest.tenant, before=ends).values())


def erase(db: duckdb.DuckDBPyConnection, tenant: str, hashes: Iterable[str]) -> dict[DropReason, int]:
    """Delete everything of the subjects with these hashes from the raw tables, before they are joined.

    Returned is how many of tonight's records that were.
    """
    if not (erased := sorted(hashes)):
        return {}
    db.execute("CREATE TABLE erased_subjects AS SELECT unnest($1) AS hash", [erased])
    prefix = {"prefix": hash_prefix(tenant)}
    for statement in _FIND_TRACES:
        db.execute(statement, prefix if "$prefix" in statement else None)
    dropped = {}
    for reason, table, condition in _DELETE:
        statement = f"DELETE FROM {table} WHERE {condition} RETURNING is_new"  # noqa: S608 -- names are literals above
        deleted = db.execute(statement, prefix if "$prefix" in condition else None).fetchall()
        dropped[reason] = sum(is_new for (is_new,) in deleted)
    return dropped


def forgotten_hashes(erasures: Iterable[Erasure]) -> frozenset[str]:
    """Hashes of the subjects that are to be forgotten whole."""
    return frozenset(erasure.subject_hash for erasure in erasures if erasure.scope == "all")
