"""What a span says about how something turned out, and the outcome record that stands for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nightschool.errors import RecordError
from nightschool.outcomes.record import Outcome, parse_outcome


@dataclass(frozen=True, slots=True)
class Feedback:
    """One judgement found on a span."""

    name: str
    value: Any
    about: str
    """What it is about: "span", "trace", "session", or "response:ID" for the answer with that id."""
    comment: str | None = None
    source_kind: str = "system"
    source_id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def outcome_of(given: Feedback, *, trace_id: str, span_id: str, conversation: str | None, at_ns: int) -> Outcome | None:
    """The outcome that stands for `given` on this span; None when it would not be a valid one."""
    target: dict[str, Any] = {"trace_id": trace_id}
    if given.about.startswith("response:"):
        target = {"response_id": given.about.removeprefix("response:")}
    elif given.about == "session":
        target = {"conversation_id": conversation}
    elif given.about == "span":
        target["span_id"] = span_id
    body = {
        "target": target,
        "name": given.name,
        "value": given.value,
        "source": {"kind": given.source_kind, "id": given.source_id},
        "occurred_at": at_ns or None,
        "comment": given.comment,
        "metadata": dict(given.metadata) or None,
    }
    try:
        return parse_outcome(body)
    except RecordError:
        return None
