"""Bodies of `POST /v1/outcomes`: one outcome or `{"outcomes": [...]}` comes in, what became of each goes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from starlette.responses import JSONResponse, Response

from nightschool.errors import RecordError, shown
from nightschool.outcomes.record import Outcome, parse_outcome
from nightschool_collector.outcomes.idempotency import Verdict
from nightschool_collector.request.refusal import BAD_REQUEST, UNSUPPORTED, RefusedError

ACCEPTED, CONFLICT = 202, 409
STATUS = {"accepted": ACCEPTED, "duplicate": ACCEPTED, "conflict": CONFLICT, "rejected": BAD_REQUEST}
"""The HTTP status of each verdict."""
MAX_OUTCOMES = 1000  # one request occupies a thread until all of its outcomes are stored
MAX_PARTS = 65_536  # names and values of one request: 65 for each of so many outcomes; one has fifteen
MAX_KEY_CHARS = 256  # a key is an id, not a text
_CONTENT_TYPES = ("application/json", "text/plain")  # a browser's sendBeacon sends text/plain, which needs no preflight


@dataclass(frozen=True, slots=True)
class OutcomeBody:
    """The outcomes of one request."""

    items: list[Outcome | RecordError]
    """In the order of the body; an item that cannot be understood is the error that says why."""
    is_batch: bool


def parse_outcomes(body: bytes, idempotency_key: str | None) -> OutcomeBody:
    """Read a body; a wrong item of a batch stands in its place as an error, a wrong body raises `RecordError`."""
    data = load_json(body)
    if isinstance(data, dict) and "outcomes" in data:
        if idempotency_key is not None:
            raise RecordError("Idempotency-Key names one outcome; in a batch give each its own event_id")
        return OutcomeBody([_parsed(item) for item in _batch_items(data)], is_batch=True)
    return OutcomeBody([_with_key(parse_outcome(data), idempotency_key)], is_batch=False)


def check_content_type(header: str | None) -> None:
    """`RefusedError` (415) for a Content-Type that is not JSON's, or plain text's; none at all is allowed."""
    content_type = (header or _CONTENT_TYPES[0]).partition(";")[0].strip().lower()
    if content_type not in _CONTENT_TYPES:
        allowed = " and ".join(_CONTENT_TYPES)
        raise RefusedError(UNSUPPORTED, f"Content-Type is {content_type!r}; allowed are {allowed}, both with JSON")


def load_json(body: bytes) -> Any:
    """The JSON value of a body; `RecordError` if it is not JSON, which has no NaN and no infinity."""
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise RecordError("the body is not valid JSON: it is nested too deep") from None
    except ValueError as error:
        raise RecordError(f"the body is not valid JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _batch_items(data: dict[str, Any]) -> list[Any]:
    items = data["outcomes"]
    if len(data) != 1 or not isinstance(items, list) or not 1 <= len(items) <= MAX_OUTCOMES:
        found = f"{len(items)} outcomes" if isinstance(items, list) else shown(items)
        raise RecordError(
            f'a batch is {{"outcomes": [...]}} with 1 to {MAX_OUTCOMES} outcomes and nothing else, got {found}'
            f" beside {len(data) - 1} other fields"
        )
    return items


def _parsed(item: Any) -> Outcome | RecordError:
    try:
        return parse_outcome(item)
    except RecordError as error:
        return error


def _with_key(outcome: Outcome, key: str | None) -> Outcome:
    """`Idempotency-Key` is another name of event_id."""
    if key is None:
        return outcome
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        raise RecordError(f"Idempotency-Key has {len(key)} characters; allowed are 1 to {MAX_KEY_CHARS}")
    if outcome.event_id not in ("", key):
        raise RecordError(f"Idempotency-Key is {shown(key)} but event_id is {shown(outcome.event_id)}; send one, or the same")
    return replace(outcome, event_id=key)


def answer(body: OutcomeBody, verdicts: Sequence[Verdict]) -> Response:
    """202 when anything of the body is stored, now or before; each item of a batch has its own status."""
    items = [verdict.to_json() for verdict in verdicts]
    is_stored = any(verdict.status in ("accepted", "duplicate") for verdict in verdicts)
    if not body.is_batch:
        return JSONResponse(items[0], status_code=STATUS[verdicts[0].status])
    if is_stored:
        return JSONResponse({"outcomes": items}, status_code=ACCEPTED)
    status = CONFLICT if any(verdict.status == "conflict" for verdict in verdicts) else BAD_REQUEST
    return JSONResponse({"error": f"outcomes[0]: {verdicts[0].error}", "outcomes": items}, status_code=status)
