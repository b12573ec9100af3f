"""What became of every record that a night read: how many there were, and how many were left out for which reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from nightschool_nightly.episodes.reasons import DropReason

# The names in brackets are chosen by clients: without a limit one of them could fill the report and the memory.
_MAX_UNKNOWN_DIALECTS = 30


@dataclass(slots=True)
class ReadCounts:
    """Records read, and everything that was left out, by the name of its reason."""

    span_records: int = 0
    log_records: int = 0
    outcome_records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """A `DropReason`, or `unknown-dialect (NAME)`, and how often."""

    def drop(self, reason: DropReason) -> None:
        """Count one thing that is left out for `reason`."""
        self.dropped[reason] += 1

    def drop_unknown_dialect(self, scope: str) -> None:
        """Count a span that no dialect reads, by the scope that made it; beyond a limit as one of the others."""
        name = f"{DropReason.UNKNOWN_DIALECT} ({scope})"
        num_names = sum(known.startswith(DropReason.UNKNOWN_DIALECT) for known in self.dropped)
        if name not in self.dropped and num_names >= _MAX_UNKNOWN_DIALECTS:
            name = f"{DropReason.UNKNOWN_DIALECT} (others)"
        self.dropped[name] += 1

    def add(self, other: ReadCounts) -> None:
        """Add everything that `other` counted."""
        self.span_records += other.span_records
        self.log_records += other.log_records
        self.outcome_records += other.outcome_records
        self.dropped += other.dropped

    def add_dropped(self, dropped: Mapping[DropReason, int]) -> None:
        """Add what a step over all records left out; a reason that happened 0 times is not named."""
        self.dropped.update({reason: number for reason, number in dropped.items() if number})
