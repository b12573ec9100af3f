"""The narrow rows that a night's join works on: the raw tables' columns, and what of a span or an outcome goes into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from hashlib import blake2b
from operator import attrgetter
from typing import Any

import pyarrow as pa

from nightschool import semconv as names
from nightschool.outcomes.record import Outcome, canonical
from nightschool_nightly.dialects import SpanRow

_CLOCK_SKEW_NS = 5 * 60 * 10**9
LAST_NS = 2**63 - 1 - _CLOCK_SKEW_NS  # OTLP times have 64 bits without a sign, columns 63
_said_values = attrgetter(*(item.name for item in fields(Outcome) if item.name not in ("event_id", "occurred_at_ns")))

SPANS = pa.schema(
    [
        ("trace", pa.string()),
        ("span", pa.string()),
        ("parent", pa.string()),
        ("started", pa.int64()),
        ("side", pa.string()),
        ("model_call", pa.bool_()),
        ("tool_run", pa.bool_()),
        ("response", pa.string()),
        ("conversation", pa.string()),
        ("episode", pa.string()),
        ("task", pa.string()),
        ("subject", pa.string()),
        ("told", pa.bool_()),
        ("content", pa.int64()),
        ("new", pa.bool_()),
        ("place", pa.int64()),
    ]
)
EVENTS = pa.schema(
    [
        ("trace", pa.string()),
        ("span", pa.string()),
        ("said_at", pa.int64()),
        ("digest", pa.int64()),
        ("content", pa.int64()),
        ("new", pa.bool_()),
        ("place", pa.int64()),
    ]
)
JOINS = pa.schema([("trace", pa.string()), ("target", pa.string())])
OUTCOMES = pa.schema(
    [
        ("event", pa.string()),
        ("said", pa.int64()),
        ("kind", pa.string()),
        ("target", pa.string()),
        ("turn", pa.int64()),
        ("slot", pa.string()),
        ("occurred", pa.int64()),
        ("received", pa.int64()),
        ("content", pa.int64()),
        ("retracted", pa.bool_()),
        ("new", pa.bool_()),
        ("place", pa.int64()),
    ]
)

RAW = {"raw_spans": SPANS, "raw_events": EVENTS, "raw_outcomes": OUTCOMES, "raw_joins": JOINS}


def span_columns(row: SpanRow, content: int | None, *, new: bool, place: int) -> tuple[Any, ...]:
    return (
        row.trace_id,
        row.span_id,
        row.parent_id if row.is_model_call else None,
        min(row.started_ns, LAST_NS),
        row.side,
        row.is_model_call,
        row.is_tool_run,
        row.response_id,
        row.conversation,
        row.episode_id,
        row.task,
        row.subject,
        row.has_content,
        content,
        new,
        place,
    )


def outcome_columns(outcome: Outcome, content: int, received_ns: int, *, new: bool, place: int) -> tuple[Any, ...]:
    kind = outcome.target_kind
    target = outcome.target[kind]
    received_ns = min(received_ns, LAST_NS)
    occurred = outcome.occurred_at_ns if outcome.occurred_at_ns is not None else received_ns
    return (
        outcome.id,
        _fingerprint(outcome),
        kind,
        canonical(target) if isinstance(target, Mapping) else target,
        outcome.target.get("turn", -1),
        canonical([outcome.target, outcome.name, outcome.source_kind, outcome.source_id]),
        min(occurred, received_ns + _CLOCK_SKEW_NS),
        received_ns,
        content,
        outcome.op == "retract",
        new,
        place,
    )


def _fingerprint(outcome: Outcome) -> int:
    """What an outcome says, without its id and time: a copy that the collector received later says the same."""
    said = repr(_said_values(outcome))
    return int.from_bytes(blake2b(said.encode("utf-8", "surrogatepass"), digest_size=7).digest())


def join_columns(row: SpanRow) -> list[tuple[str, str]]:
    """The names of the app's own that a span carries, as outcomes target them."""
    found = []
    for name, value in row.attributes.items():
        if name.startswith(names.JOIN_KEY_PREFIX):
            ids = value if isinstance(value, list) else [value]
            ns = name.removeprefix(names.JOIN_KEY_PREFIX)
            found += [(row.trace_id, canonical({"ns": ns, "id": id})) for id in ids if isinstance(id, str)]  # noqa: A001
    return found
