"""Training and test set: who only tests, how many prompts one user may have, and which prompts the night has room for.

"User" stands here for what all statistics count as one: the subject, the conversation or the trace (`Example.cluster`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from nightschool.config.settings import NightConfig
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.examples.learned import NOTHING_LEARNED, Learned, hash_cluster
from nightschool_nightly.examples.pool import Row

NoPlace = dict[str, DropReason]
"""Examples that are good by themselves and have no place in the night: why, by id."""


def is_held_out(tenant: str, name: str, share: float) -> bool:
    """Whether a user, or a prompt, that never trained only tests.

    By a hash of the name alone, so that it is the same every night: a larger share adds users, and takes none away.
    """
    digest = hashlib.sha256(f"holdout/{tenant}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(frozen=True, slots=True)
class Places:
    """Gives the examples of a night their places. The same examples in any order get the same ones."""

    tenant: str
    settings: NightConfig
    learned: Learned = NOTHING_LEARNED
    """What the release that the night goes on from was made of."""
    night: str = ""
    """The digest of the night, which seeds what is drawn."""
    left_out: NoPlace = field(default_factory=dict)
    """Filled with the examples that get no place."""

    def give(self, rows: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
        """The examples that the night trains on, and those that only test.

        A user's share is capped before copies are looked for: one who sends what everybody sends would take it all
        away. It is capped again after that, so that it holds on what is left.
        """
        once_a_user = attrgetter("cluster", "prompt")
        train, holdout = (self._capped(self._each_once(side, once_a_user)) for side in self._split(rows))
        tests = self._prompts_that_test({row.prompt for row in train} & {row.prompt for row in holdout})
        learns = {row.prompt for row in train} - tests
        train = self._without(train, lambda row: row.prompt in tests, DropReason.DUPLICATE)
        holdout = self._without(holdout, lambda row: row.prompt in learns, DropReason.DUPLICATE)
        room = self.settings.steps * self.settings.prompts_per_step
        sides = ((train, room), (holdout, self.settings.max_holdout))
        train, holdout = (
            self._drawn(self._capped(self._each_once(side, attrgetter("prompt")), room=room), room) for side, room in sides
        )
        return tuple(train), tuple(holdout)

    # --- sides ----------------------------------------------------------------------------------------------------------
    def _split(self, rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
        """Users who train, and users who test. Who ever trained never tests; nor does a prompt that ever did."""
        train: list[Row] = []
        holdout: list[Row] = []
        for row in rows:
            has_trained = hash_cluster(self.tenant, row.cluster) in self.learned.clusters
            tests = not has_trained and is_held_out(self.tenant, row.cluster, self.settings.holdout_share)
            (holdout if tests else train).append(row)
        return train, self._without(holdout, lambda row: row.prompt in self.learned.prompts, DropReason.TRAINED_PROMPT)

    def _prompts_that_test(self, on_both_sides: Iterable[str]) -> set[str]:
        """Those prompts of both sides that stay with the users who test: by their own hash."""
        return {prompt for prompt in on_both_sides if is_held_out(self.tenant, prompt, self.settings.holdout_share)}

    # --- what is left out -----------------------------------------------------------------------------------------------
    def _without(self, rows: Iterable[Row], goes: Callable[[Row], bool], reason: DropReason) -> list[Row]:
        """The examples that stay; the others have no place for `reason`."""
        kept = []
        for row in rows:
            if goes(row):
                self.left_out[row.id] = reason
            else:
                kept.append(row)
        return kept

    def _each_once(self, rows: Sequence[Row], key: Callable[[Row], Any]) -> list[Row]:
        """One example of each key: of the user who has the fewest, and then as it is drawn."""
        sizes = Counter(row.cluster for row in rows)
        first: dict[Any, Row] = {}
        for row in sorted(rows, key=lambda row: (sizes[row.cluster], self._draw(row))):
            first.setdefault(key(row), row)
        chosen = {row.id for row in first.values()}
        return self._without(rows, lambda row: row.id not in chosen, DropReason.DUPLICATE)

    def _capped(self, rows: Sequence[Row], *, room: int | None = None) -> list[Row]:
        """The examples with no user over their share of those that are left, at most `room` of which have a place."""
        limit = largest_limit(Counter(row.cluster for row in rows), self.settings.max_share_per_user, room)
        taken = Counter[str]()
        over = set()
        for row in sorted(rows, key=self._draw):
            taken[row.cluster] += 1
            if taken[row.cluster] > limit:
                over.add(row.id)
        return self._without(rows, lambda row: row.id in over, DropReason.USER_SHARE)

    def _drawn(self, rows: Iterable[Row], room: int) -> list[Row]:
        """As many as there is room for, in an order drawn for the night, with its share of each task."""
        by_task: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_task[row.task].append(row)
        places = []
        for task, members in sorted(by_task.items()):
            members.sort(key=self._draw)
            places += [((rank + 0.5) / len(members), task, row) for rank, row in enumerate(members)]
        drawn = [row for _, _, row in sorted(places, key=lambda place: place[:2])]
        self.left_out.update({row.id: DropReason.NOT_SAMPLED for row in drawn[room:]})
        return drawn[:room]

    def _draw(self, row: Row) -> bytes:
        return hashlib.sha256(f"draw/{self.night}/{row.id}".encode()).digest()


def largest_limit(sizes: Counter[str], share: float, room: int | None = None) -> int:
    """The most examples a user may have so that nobody has more than `share` of what is then left, of `room` at most.

    At least 1. With too few users for anybody to stay within the share, each may have twice an equal part.
    """
    if 0 < len(sizes) < 1 / share:
        share = 2 / len(sizes)
    limit = max(sizes.values(), default=1)
    # What is left grows with the limit, so going down from the top ends at the largest limit that fits.
    while True:
        num_left = sum(min(size, limit) for size in sizes.values())
        fits = max(1, math.floor(share * (num_left if room is None else min(num_left, room))))
        if limit <= fits:
            return limit
        limit = fits
