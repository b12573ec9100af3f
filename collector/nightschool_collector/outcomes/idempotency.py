"""From outcomes to what became of each: accepted, known already, in conflict with a known one, or refused.

The process remembers the newest event ids and what each said. Inside that memory a replay is answered `duplicate` without storing
it again, and an id that comes back with another body is a conflict. Past it (a restart, another collector) both are stored, and the
nightly read keeps the first record of an id: what an id is good for does not depend on this memory, only how soon one hears of it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nightschool.errors import RecordError, shown
from nightschool.outcomes.record import Outcome, canonical

REMEMBERED_EVENTS = 65_536  # about 15 MB; at 100 outcomes a second, the replays of the last ten minutes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one outcome."""

    status: Literal["accepted", "duplicate", "conflict", "rejected"]
    event_id: str | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        said = {"event_id": self.event_id, "status": self.status, "error": self.error}
        return {name: value for name, value in said.items() if value is not None}


class IdempotentWriter:
    """Stores outcomes once. Safe to use from several threads."""

    def __init__(
        self,
        append: Callable[[str, Sequence[Outcome]], None],
        *,
        redact: Callable[[str, Outcome], Outcome] = lambda tenant, outcome: outcome,
        num_remembered: int = REMEMBERED_EVENTS,
    ) -> None:
        """`append` stores outcomes of a tenant and returns when they are durable; `redact` comes before all else."""
        self._append, self._redact, self._num_remembered = append, redact, num_remembered
        self._changed = threading.Condition()
        self._being_stored: set[tuple[str, str]] = set()
        self._known: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def take(self, tenant: str, items: Sequence[Outcome | RecordError]) -> list[Verdict]:
        """Store what is new, and say what became of each item, in order. Whatever it says is said of durable records."""
        items = [self._redacted(tenant, item) for item in items]
        keys = {(tenant, item.id) for item in items if isinstance(item, Outcome)}
        with self._changed:
            # A page that is left sends what it just sent: the copy waits for the first, to be told from a new outcome.
            self._changed.wait_for(lambda: self._being_stored.isdisjoint(keys))
            known = {event: said for (_, event) in keys if (said := self._known.get((tenant, event))) is not None}
            verdicts, fresh = _judge(items, known)
            being_stored = {(tenant, outcome.event_id) for outcome in fresh}
            self._being_stored |= being_stored
        try:
            if fresh:
                self._append(tenant, fresh)
                self._remember(tenant, {outcome.event_id: known[outcome.event_id] for outcome in fresh})
        finally:
            with self._changed:
                self._being_stored -= being_stored
                self._changed.notify_all()
        return verdicts

    def _redacted(self, tenant: str, item: Outcome | RecordError) -> Outcome | RecordError:
        try:
            return item if isinstance(item, RecordError) else self._redact(tenant, item)
        except RecordError as error:
            return error

    def _remember(self, tenant: str, fresh: dict[str, bytes]) -> None:
        with self._changed:
            for event, said in fresh.items():
                self._known[tenant, event] = said
            while len(self._known) > self._num_remembered:
                self._known.popitem(last=False)


def _judge(items: Sequence[Outcome | RecordError], known: dict[str, bytes]) -> tuple[list[Verdict], list[Outcome]]:
    """What becomes of each item, and those to store; `known` is what each id said before, and gets what the new ones say."""
    verdicts, fresh = [], []
    for item in items:
        if isinstance(item, RecordError):
            verdicts.append(Verdict("rejected", error=_printable(str(item))))
            continue
        event, said = item.id, _fingerprint(item)
        if event not in known:
            known[event] = said
            # The id that is answered is the one that is stored, whatever is made of the outcome on its way.
            fresh.append(replace(item, event_id=event))
            verdicts.append(Verdict("accepted", event))
        elif known[event] == said:
            verdicts.append(Verdict("duplicate", event))
        else:
            what = f"event_id {shown(event)} was used before with another body; give every outcome an id of its own"
            verdicts.append(Verdict("conflict", event, what))
    return verdicts, fresh


def _fingerprint(outcome: Outcome) -> bytes:
    return hashlib.sha256(canonical(outcome.to_json()).encode()).digest()[:16]


def _printable(text: str) -> str:
    # A message may quote what came, and JSON can carry lone surrogates, which no answer can.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
