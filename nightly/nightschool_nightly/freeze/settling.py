"""When an episode is final: outcomes come late and are corrected, and a night must not learn from what may change.

An episode is provisional until every outcome that its rubric reads has settled, at the latest when the window for
outcomes has closed; from then on it is final. What comes after that is a revision, which a later night learns from as
it learns from anything new. All of it is decided by when records were received and by when the night froze its input,
never by the clock of the moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nightschool.config.settings import Config, duration_ms
from nightschool.episode import Episode
from nightschool.outcomes.record import Outcome
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.rewards.rubric import Rubric

_NS_PER_MS = 1_000_000
HOUR_MS = 3_600_000


# --- what is waited for -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class SettlingRules:
    """What a night's manifest says about waiting."""

    settles_after_ms: Mapping[str, int]
    """How long the newest record of an outcome name must stand; a name that is not listed settles at once."""
    window_ms: int
    """How long after its start an episode waits for outcomes at most."""
    as_of_ms: int
    """The time of the night, down to the hour; what is due later has not settled yet."""
    previous_as_of_ms: int = 0
    """The time of the last night that ended; 0 when there is none."""


def settling_rules(manifest: NightManifest) -> SettlingRules | None:
    """What a night waits for; None when it waits for nothing."""
    if not manifest.settles_after_ms:
        return None
    window_ms = window_of(manifest.settings)
    return SettlingRules(manifest.settles_after_ms, window_ms, manifest.as_of_ms, manifest.previous_as_of_ms)


def settling_of(config: Config, rubrics: Mapping[str, Rubric]) -> dict[str, int]:
    """Milliseconds that each outcome name must stand which the rubrics read, without those that settle at once."""
    return settling_names(config, (name for rubric in rubrics.values() for name in rubric.outcome_names))


def settling_names(config: Config, names: Iterable[str]) -> dict[str, int]:
    """Milliseconds that each of `names` must stand, without those that settle at once."""
    waits = {name: config.outcomes[name].settles_after_ms for name in sorted(set(names)) if name in config.outcomes}
    return {name: wait for name, wait in waits.items() if wait}


def window_of(settings: Mapping[str, object]) -> int:
    """Milliseconds of the outcome window in a manifest's [night] settings."""
    return duration_ms(str(settings.get("outcome_window", "30d")))  # 30d in manifests older than the setting


# --- one outcome name of an episode -------------------------------------------------------------------------------------
class OutcomeState(StrEnum):
    """How far the records of one outcome name are."""

    MISSING = "missing"
    """No record has come yet. The episode waits until the window closes; then the outcome stays unknown."""
    UNSETTLED = "unsettled"
    """The newest record has not stood for its time yet; each one that comes in that time begins it anew."""
    SETTLED = "settled"
    """A record has stood for its time. What comes now is a revision."""


@dataclass(slots=True)
class OutcomeSettling:
    """The records of one outcome name, of all raters, as a state machine that is given them in order of arrival.

    | state              | when the next record arrives                                            |
    |--------------------|-------------------------------------------------------------------------|
    | MISSING            | UNSETTLED; it is due when its wait is over, or when the window closes   |
    | UNSETTLED, not due | UNSETTLED; the wait begins anew                                         |
    | UNSETTLED, due     | SETTLED; the record is a revision                                       |
    | SETTLED            | SETTLED; the record is a revision                                       |

    After the last record comes the night: `state_at`.
    """

    wait_ns: int
    """How long a record must stand; 0 for a name that settles at once."""
    closes_ns: int
    """When the window closes: then nothing is waited for any longer."""
    state: OutcomeState = OutcomeState.MISSING
    due_ns: int = field(init=False)
    """When the name settled, or will if nothing more comes."""
    is_at_once: bool = False
    """The record that counts settled on arrival: its name has no wait, or a human wrote the right answer."""

    def __post_init__(self) -> None:
        self.due_ns = self.closes_ns

    def receive(self, outcome: Outcome, received_ns: int) -> None:
        """The next record arrives."""
        if self.state is OutcomeState.UNSETTLED and self.due_ns <= received_ns:
            self.state = OutcomeState.SETTLED
        if self.state is OutcomeState.SETTLED:
            return
        self.state = OutcomeState.UNSETTLED
        self.is_at_once = not self.wait_ns or (outcome.op == "set" and outcome.final_answer is not None)
        last_ns = max(received_ns, self.closes_ns)  # a record that comes after the window has closed is due on arrival
        self.due_ns = received_ns if self.is_at_once else min(received_ns + self.wait_ns, last_ns)

    def state_at(self, night_ns: int) -> OutcomeState:
        """The state that a night of this time sees, after every record that it froze.

        A night's time is rounded down to the hour and may lie before its last records. What settles at once is settled
        as soon as it is there; what was due after the night's time is not, even if a record after that has already
        settled it.
        """
        if self.is_at_once or self.due_ns <= night_ns:
            return OutcomeState.SETTLED
        return OutcomeState.UNSETTLED if self.state is OutcomeState.SETTLED else self.state


# --- the episode --------------------------------------------------------------------------------------------------------
class EpisodeState(StrEnum):
    """Whether a night may learn from an episode."""

    PROVISIONAL = "provisional"
    """An outcome that its rubric reads has not settled yet; a later night will see it settled."""
    FINAL = "final"
    """All of them have settled."""


@dataclass(frozen=True, slots=True)
class EpisodeSettling:
    """How far an episode is at the time of a night."""

    state: EpisodeState
    final_at_ns: int
    """When it became final, or will if nothing more comes."""
    revision: int
    """How many records of the outcomes came after that."""
    waited_until_ns: int
    """When the last outcome that must stand for a time had done so; 0 when none must."""

    def is_final_since_last_night(self, rules: SettlingRules) -> bool:
        """Whether the last night that ended waited for it and this one does not: it is new without a new record."""
        return self.state is EpisodeState.FINAL and self.waited_until_ns > rules.previous_as_of_ms * _NS_PER_MS > 0


def settle(episode: Episode, names: Iterable[str], rules: SettlingRules) -> EpisodeSettling:
    """How far an episode is whose rubric reads the outcomes `names`."""
    closes_ns = episode.started_ns + rules.window_ms * _NS_PER_MS
    outcomes, received = [], []
    for name in names:
        outcome = OutcomeSettling(rules.settles_after_ms.get(name, 0) * _NS_PER_MS, closes_ns)
        for received_ns, record in _records(episode, name):
            outcome.receive(record, received_ns)
            received.append(received_ns)
        outcomes.append(outcome)
    night_ns = rules.as_of_ms * _NS_PER_MS
    is_final = all(outcome.state_at(night_ns) is OutcomeState.SETTLED for outcome in outcomes)
    final_at_ns = max([episode.started_ns, *(outcome.due_ns for outcome in outcomes)])
    return EpisodeSettling(
        state=EpisodeState.FINAL if is_final else EpisodeState.PROVISIONAL,
        final_at_ns=final_at_ns,
        revision=sum(received_ns > final_at_ns for received_ns in received),
        waited_until_ns=max([0, *(outcome.due_ns for outcome in outcomes if not outcome.is_at_once)]),
    )


def _records(episode: Episode, name: str) -> list[tuple[int, Outcome]]:
    """Every record of an outcome name with when it was received, of all raters, in order of arrival."""
    found = [
        (received_ns, outcome)
        for history in (*episode.outcomes, *episode.retracted)
        if history.current.name == name
        for received_ns, outcome in zip(history.received_ns, history.revisions, strict=True)
    ]
    return sorted(found, key=lambda record: record[0])
