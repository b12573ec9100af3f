"""Outcomes that no rubric reads, counted by name: often it is a name that the app and the rubric spell differently."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from nightschool.episode import Episode
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.rewards.rubric import Rubric

# Names are chosen by clients: they may not control a terminal, and not fill the report or the memory.
_NOT_IN_A_NAME = re.compile(r"[^\w .:/@-]", re.ASCII)
_MAX_CHARS, _MAX_NAMES = 60, 30


class UnreadOutcomes:
    """Counts the outcomes of new episodes whose name the rubric of their task does not read."""

    def __init__(self, rubrics: Mapping[str, Rubric]) -> None:
        self._read = {task: frozenset(rubric.outcome_names) for task, rubric in rubrics.items()}
        self.counts: Counter[str] = Counter()
        """`unread-outcome (NAME)`, and how often."""

    def see(self, episode: Episode) -> None:
        """Count those of one episode; where its task has no rubric, that is what stands in the report."""
        if (read := self._read.get(episode.task)) is None:
            return
        for history in episode.outcomes:
            if (name := history.current.name) not in read:
                self._count(f"{DropReason.UNREAD_OUTCOME} ({_NOT_IN_A_NAME.sub('?', name)[:_MAX_CHARS]})")

    def _count(self, name: str) -> None:
        if name not in self.counts and len(self.counts) >= _MAX_NAMES:
            name = f"{DropReason.UNREAD_OUTCOME} (others)"
        self.counts[name] += 1
