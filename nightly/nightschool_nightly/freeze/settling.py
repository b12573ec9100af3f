"""When an episode is final: outcomes come late and are corrected, and a night should not learn from what still changes.

An episode is provisional until each outcome its rubric reads has settled, or until the window for outcomes has closed; then it is
final, once. What comes after that is a revision, which a later night learns from as it learns from anything new. Decided by when
records were received and by the time the night froze, never by a clock of now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nightschool.config.settings import Config, duration_ms
from nightschool.episode import Episode, OutcomeHistory
from nightschool.outcomes.record import Outcome
from nightschool_nightly.freeze.manifest import NightManifest

_NS_PER_MS = 1_000_000
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Lateness:
    """What a night's manifest says of waiting."""

    settles_after_ms: Mapping[str, int]
    """How long the newest record of a name must stand; names not listed settle at once."""
    window_ms: int
    """How long after its start an episode waits for outcomes at most."""
    as_of_ms: int
    """The night's idea of now."""
    previous_as_of_ms: int = 0
    """That of the last published night."""


def lateness_of(manifest: NightManifest) -> Lateness | None:
    """What a night waits for; None when it waits for nothing."""
    if not manifest.settles_after_ms:
        return None
    window_ms = window_of(manifest.settings)
    return Lateness(manifest.settles_after_ms, window_ms, manifest.as_of_ms, manifest.previous_as_of_ms)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an episode is."""

    is_final: bool
    final_at_ns: int
    """When it became final, or will if nothing more comes."""
    revision: int
    """Records of expected outcomes that came after that."""
    waited_until_ns: int
    """When the last of those that must stand for a while had done so; 0 when none must."""

    def is_news(self, lateness: Lateness) -> bool:
        """Whether the last published night still waited for it, and this one does not."""
        return self.is_final and self.waited_until_ns > lateness.previous_as_of_ms * _NS_PER_MS > 0


def settling_names(config: Config, names: Iterable[str]) -> dict[str, int]:
    """Milliseconds that each of `names` must stand, without those that settle at once."""
    waits = {name: config.outcomes[name].settles_after_ms for name in sorted(set(names)) if name in config.outcomes}
    return {name: wait for name, wait in waits.items() if wait}


def window_of(settings: Mapping[str, object]) -> int:
    """Milliseconds of the outcome window in a manifest's [night] settings."""
    return duration_ms(str(settings.get("outcome_window", "30d")))


def standing(episode: Episode, names: Iterable[str], lateness: Lateness) -> Standing:
    """Where an episode stands whose rubric reads the outcomes `names`."""
    closes_ns = episode.started_ns + lateness.window_ms * _NS_PER_MS
    is_final, final_at_ns, waited_until_ns, arrivals = True, episode.started_ns, 0, []
    for name in names:
        records = _records([*episode.outcomes, *episode.retracted], name)
        wait_ns = lateness.settles_after_ms.get(name, 0) * _NS_PER_MS
        settled_ns, at_once = _settled(records, wait_ns, closes_ns)
        # What settles at once is in the frozen range, so it has come, whatever the rounding of the night's time says.
        is_final = is_final and (at_once or settled_ns <= lateness.as_of_ms * _NS_PER_MS)
        final_at_ns = max(final_at_ns, settled_ns)
        waited_until_ns = waited_until_ns if at_once else max(waited_until_ns, settled_ns)
        arrivals += [received_ns for received_ns, _ in records]
    revision = sum(received_ns > final_at_ns for received_ns in arrivals)
    return Standing(is_final, final_at_ns, revision, waited_until_ns)


def _records(histories: Iterable[OutcomeHistory], name: str) -> list[tuple[int, Outcome]]:
    """Every record of a name, of all raters, in order of arrival."""
    found = [
        (received_ns, outcome)
        for history in histories
        if history.current.name == name
        for received_ns, outcome in zip(history.received_ns, history.revisions, strict=True)
    ]
    return sorted(found, key=lambda record: record[0])


def _settled(records: list[tuple[int, Outcome]], wait_ns: int, closes_ns: int) -> tuple[int, bool]:
    """When a name settled, or will, and whether that was on arrival: the first record that nothing followed within its wait."""
    for place, (received_ns, outcome) in enumerate(records):
        at_once = not wait_ns or (outcome.op == "set" and outcome.final_answer is not None)
        due_ns = received_ns if at_once else min(received_ns + wait_ns, max(received_ns, closes_ns))
        if place + 1 == len(records) or due_ns <= records[place + 1][0]:
            return due_ns, at_once
    return closes_ns, False
