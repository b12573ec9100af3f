"""Storing an outcome once, however often it is sent: accepted, duplicate, conflict or rejected.

The process remembers the newest event ids and a fingerprint of the body that each came with. While an id is
remembered, a second copy is answered `duplicate` and not stored again, and another body under the same id is a
conflict. After it is forgotten (a restart, another collector) both are stored, and the night keeps the first record
of an id: this memory decides how soon the sender is told, never what a night reads.
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
from nightschool_collector.request.refusal import printable

REMEMBERED_EVENTS = 65_536  # about 15 MB; at 100 outcomes a second, the copies of the last ten minutes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one outcome."""

    status: Literal["accepted", "duplicate", "conflict", "rejected"]
    event_id: str | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the answer shows it; what is None is left out."""
        fields = {"event_id": self.event_id, "status": self.status, "error": self.error}
        return {name: value for name, value in fields.items() if value is not None}


class IdempotentWriter:
    """Stores outcomes once. Safe to use from several threads."""

    def __init__(
        self,
        append: Callable[[str, Sequence[Outcome]], None],
        *,
        redact: Callable[[str, Outcome], Outcome] = lambda tenant, outcome: outcome,
        num_remembered: int = REMEMBERED_EVENTS,
    ) -> None:
        """`append` stores outcomes of a tenant and returns when they are durable; `redact` runs before that."""
        self._append, self._redact, self._num_remembered = append, redact, num_remembered
        self._changed = threading.Condition()
        self._being_stored: set[tuple[str, str]] = set()
        self._known: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        """The fingerprint of each remembered event, by tenant and event id."""

    def write(self, tenant: str, items: Sequence[Outcome | RecordError]) -> list[Verdict]:
        """Store what is new and return what became of each item, in order, when everything is durable."""
        items = [self._redacted(tenant, item) for item in items]
        keys = {(tenant, item.id) for item in items if isinstance(item, Outcome)}
        with self._changed:
            # A page that is closed may send a copy of what it just sent. The copy waits until the first is stored:
            # only then is it known to be a copy and not a new outcome.
            self._changed.wait_for(lambda: self._being_stored.isdisjoint(keys))
            known = {event: mark for (_, event) in keys if (mark := self._known.get((tenant, event))) is not None}
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

    def _remember(self, tenant: str, fingerprints: dict[str, bytes]) -> None:
        with self._changed:
            for event, fingerprint in fingerprints.items():
                self._known[tenant, event] = fingerprint
            while len(self._known) > self._num_remembered:
                self._known.popitem(last=False)


def _judge(items: Sequence[Outcome | RecordError], known: dict[str, bytes]) -> tuple[list[Verdict], list[Outcome]]:
    """The verdict on each item, and the outcomes to store; their fingerprints are added to `known`, by event id."""
    verdicts, fresh = [], []
    for item in items:
        if isinstance(item, RecordError):
            verdicts.append(Verdict("rejected", error=printable(str(item))))
            continue
        event, fingerprint = item.id, _fingerprint(item)
        if event not in known:
            known[event] = fingerprint
            # The id is written into the outcome, so that the stored id is the answered one whatever happens to the
            # outcome on its way.
            fresh.append(replace(item, event_id=event))
            verdicts.append(Verdict("accepted", event))
        elif known[event] == fingerprint:
            verdicts.append(Verdict("duplicate", event))
        else:
            what = f"event_id {shown(event)} was used before with another body; give every outcome an id of its own"
            verdicts.append(Verdict("conflict", event, what))
    return verdicts, fresh


def _fingerprint(outcome: Outcome) -> bytes:
    return hashlib.sha256(canonical(outcome.to_json()).encode()).digest()[:16]
