"""When an episode is final, by when its outcomes were received."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nightschool.config.reader import parse_config
from nightschool.episode import Episode, OutcomeHistory
from nightschool.outcomes.record import Outcome
from nightschool_nightly.freeze.settling import (
    EpisodeState,
    OutcomeSettling,
    OutcomeState,
    SettlingRules,
    settle,
    settling_names,
    window_of,
)

HOUR_NS = 3_600 * 10**9
T0 = 1_790_000_000 * 10**9


def history(*records: tuple[float, Any], name: str = "thumb", rater: str = "ann") -> OutcomeHistory:
    """The records of a slot, as hours after the start and value; `...` retracts, a text is a human's final answer."""
    found = tuple(
        Outcome(
            {"response_id": "r"},
            name,
            value=value if isinstance(value, bool) else None,
            final_text=value if isinstance(value, str) else None,
            op="retract" if value is ... else "set",
            source_id=rater,
        )
        for _, value in records
    )
    return OutcomeHistory(found[-1], found, received_ns=tuple(T0 + int(at * HOUR_NS) for at, _ in records))


def stands(
    *histories: OutcomeHistory, at: float, names: tuple[str, ...] = ("thumb",), retracted: tuple[OutcomeHistory, ...] = ()
) -> Any:
    """Whether an episode is final for a night `at` hours after its start, the hour it became so, and its revision."""
    episode = Episode("acme", "1" * 32, "t", None, None, T0, (), tuple(histories), retracted)
    rules = SettlingRules(
        {"thumb": 24 * 3_600_000, "resolved": 72 * 3_600_000}, 30 * 24 * 3_600_000, (T0 + int(at * HOUR_NS)) // 10**6
    )
    found = settle(episode, names, rules)
    return found.state is EpisodeState.FINAL, (found.final_at_ns - T0) / HOUR_NS, found.revision


def test_a_value_settles_when_nothing_followed_it() -> None:
    """A thumb must stand for a day before it counts; one that changes within the day begins the day anew."""
    assert stands(history((1, True)), at=24.9) == (False, 25, 0)
    assert stands(history((1, True)), at=25) == (True, 25, 0)
    assert stands(history((1, True), (20, False)), at=25) == (False, 44, 0)
    assert stands(history((1, True), (20, False)), at=44) == (True, 44, 0)


def test_a_human_final_answer_settles_at_once() -> None:
    """A human wrote the right answer: nothing is waited for, even if the night's hour, rounded down, is before it."""
    assert stands(history((1.5, "done")), at=1) == (True, 1.5, 0)
    assert stands(history((1, True), (2, "done")), at=2) == (True, 2, 0)


def test_what_comes_after_it_was_final_is_a_revision() -> None:
    """Final once: corrections and retractions later count, and do not make it provisional again."""
    assert stands(history((1, True), (30, False)), at=31) == (True, 25, 1)
    assert stands(history((1, "done"), (2, "better"), (3, "best")), at=4) == (True, 1, 2)
    assert stands(retracted=(history((1, True), (30, ...)),), at=31) == (True, 25, 1)
    assert stands(retracted=(history((1, True), (3, ...)),), at=26) == (False, 27, 0)


def test_every_expected_name_is_waited_for() -> None:
    """The slowest decides; two raters of a name are one wait; names that no rubric reads are not waited for."""
    both = ("thumb", "resolved")
    assert stands(history((1, True)), history((1, True), name="resolved"), at=30, names=both) == (False, 73, 0)
    assert stands(history((1, True)), history((5, True), rater="bob"), at=27) == (False, 29, 0)
    assert stands(history((1, True)), history((26, True), name="csat"), at=27) == (True, 25, 0)
    assert stands(history((1, True), name="queue"), at=1, names=("queue",)) == (True, 1, 0)
    assert stands(at=0, names=()) == (True, 0, 0)


def test_the_window_closes() -> None:
    """After thirty days nothing is waited for: what is not there stays unknown, what comes later settles on arrival."""
    days = 30 * 24
    assert stands(at=days - 1) == (False, days, 0)
    assert stands(at=days) == (True, days, 0)
    assert stands(history((days - 1, True)), at=days) == (True, days, 0)
    assert stands(history((days + 5, True)), at=days + 5) == (True, days + 5, 0)


def test_names_wait_as_configured() -> None:
    """The defaults, what a file changes, and nothing for a name that is not configured."""
    config = parse_config('[outcomes.thumb]\nsettles_after = "0h"\n[outcomes.csat]\nsettles_after = "2h"', base=Path("/conf"))
    hour = 3_600_000
    assert settling_names(config, ["thumb", "csat", "queue", "resolved"]) == {"csat": 2 * hour, "resolved": 72 * hour}
    defaults = parse_config("", base=Path("/conf"))
    assert settling_names(defaults, ["thumb", "edit", "resolved", "conversion", "final"]) == {
        "thumb": 24 * hour,
        "edit": 24 * hour,
        "resolved": 72 * hour,
        "conversion": 14 * 24 * hour,
    }
    assert window_of({"outcome_window": "2d"}) == 48 * hour
    assert window_of({}) == 30 * 24 * hour


@pytest.mark.parametrize("at", [0, 10, 24, 25, 26, 100, 1000])
def test_a_night_sees_the_same_final_time_whenever_it_looks(at: float) -> None:
    """When an episode became final does not depend on the night that asks."""
    assert stands(history((1, True), (30, False)), at=at)[1:] == (25, 1)


# --- the states of one outcome name -------------------------------------------------------------------------------------
MISSING, UNSETTLED, SETTLED = OutcomeState.MISSING, OutcomeState.UNSETTLED, OutcomeState.SETTLED


def after(*hours: float, wait: float = 24, closes: float = 720, answer: str | None = None) -> OutcomeSettling:
    """A name whose records came at these hours; `answer` makes each of them a human's final answer."""
    machine = OutcomeSettling(wait_ns=int(wait * HOUR_NS), closes_ns=int(closes * HOUR_NS))
    for at in hours:
        machine.receive(
            Outcome({"response_id": "r"}, "thumb", value=None if answer else True, final_text=answer), int(at * HOUR_NS)
        )
    return machine


@pytest.mark.parametrize(
    ("machine", "state", "due"),
    [
        (after(), MISSING, 720),
        (after(1), UNSETTLED, 25),
        (after(1, 24), UNSETTLED, 48),  # in time: the wait begins anew
        (after(1, 25), SETTLED, 25),  # too late: a revision, and what settled stays
        (after(1, 25, 26), SETTLED, 25),
        (after(1, wait=0), UNSETTLED, 1),  # due on arrival
        (after(1, answer="done"), UNSETTLED, 1),
        (after(719), UNSETTLED, 720),  # the window closes before the wait is over
        (after(730), UNSETTLED, 730),  # after the window: due on arrival
    ],
)
def test_a_record_moves_the_state(machine: OutcomeSettling, state: OutcomeState, due: float) -> None:
    """Each transition of the table in the class, and when the name is due after it."""
    assert (machine.state, machine.due_ns / HOUR_NS) == (state, due)


@pytest.mark.parametrize(
    ("machine", "night", "state"),
    [
        (after(), 719, MISSING),
        (after(), 720, SETTLED),
        (after(1), 24, UNSETTLED),
        (after(1), 25, SETTLED),
        (after(1, 25.5), 25, SETTLED),
        (after(1.5, 25.7), 25, UNSETTLED),  # settled at 25.5, but the night's time is 25, rounded down to the hour
        (after(1.5, answer="done"), 1, SETTLED),
    ],
)
def test_a_night_sees_what_was_due_by_its_time(machine: OutcomeSettling, night: float, state: OutcomeState) -> None:
    """Only what settles at once is settled before the hour of the night has come."""
    assert machine.state_at(int(night * HOUR_NS)) is state
