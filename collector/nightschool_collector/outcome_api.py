"""The bodies of `POST /v1/outcomes`: one outcome, or `{"outcomes": [...]}`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, NoReturn

from nightschool.errors import RecordError, shown
from nightschool.outcomes import Outcome, parse_outcome

MAX_OUTCOMES = 1000
MAX_KEY_CHARS = 256


def parse_outcomes(body: bytes, idempotency_key: str | None) -> tuple[list[Outcome], bool]:
    """The outcomes of a body and whether it was a batch; one that is wrong refuses all, named by its place."""
    data = _load(body)
    if isinstance(data, dict) and "outcomes" in data:
        if idempotency_key is not None:
            raise RecordError("Idempotency-Key names one outcome; in a batch give each its own event_id")
        return _parse_batch(data), True
    return [_with_key(parse_outcome(data), idempotency_key)], False


def _load(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise RecordError("the body is not valid JSON: it is nested too deep") from None
    except ValueError as error:
        raise RecordError(f"the body is not valid JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_batch(data: dict[str, Any]) -> list[Outcome]:
    items = data["outcomes"]
    if len(data) != 1 or not isinstance(items, list) or not 1 <= len(items) <= MAX_OUTCOMES:
        found = f"{len(items)} outcomes" if isinstance(items, list) else shown(items)
        raise RecordError(
            f'a batch is {{"outcomes": [...]}} with 1 to {MAX_OUTCOMES} outcomes and nothing else, got {found}'
            f" beside {len(data) - 1} other fields"
        )
    outcomes = []
    for place, item in enumerate(items):
        try:
            outcomes.append(parse_outcome(item))
        except RecordError as error:
            raise RecordError(f"outcomes[{place}]: {error}") from None
    return outcomes


def _with_key(outcome: Outcome, key: str | None) -> Outcome:
    """`Idempotency-Key` is another name of event_id."""
    if key is None:
        return outcome
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        raise RecordError(f"Idempotency-Key has {len(key)} characters; allowed are 1 to {MAX_KEY_CHARS}")
    if outcome.event_id not in ("", key):
        raise RecordError(f"Idempotency-Key is {shown(key)} but event_id is {shown(outcome.event_id)}; send one, or the same")
    return replace(outcome, event_id=key)
