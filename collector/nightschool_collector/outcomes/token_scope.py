"""What a browser token allows a page to write: the fields of a request, turned into an outcome in the token's scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nightschool.config.settings import OutcomeConfig
from nightschool.errors import RecordError, shown
from nightschool.outcomes.record import Outcome, parse_outcome
from nightschool.outcomes.tokens import TokenClaims, TokenError

MAX_TEXT_BYTES = 64 << 10  # a long letter; larger texts come from a server, with an API key
MAX_EVENT_ID_CHARS = 128  # an id is not a text
_FIELDS = {"token", "name", "value", "edit", "op", "event_id", "occurred_at", "comment", "about"}
_KINDS = {"bool": (bool,), "number": (int, float), "text": (str,)}


def outcome_of(fields: Mapping[str, Any], claims: TokenClaims, rules: Mapping[str, OutcomeConfig]) -> Outcome:
    """The outcome in `fields`, about the token's trace and from its rater.

    `TokenError` for what the token does not allow, `RecordError` for what is not an outcome or breaks the rules.
    """
    if unknown := sorted(set(fields) - _FIELDS):
        raise RecordError(f"unknown field {shown(unknown[0])}; a browser token may send {', '.join(sorted(_FIELDS))}")
    if fields.get("name") not in claims.names:
        raise TokenError(
            403, f"the token does not allow the outcome {shown(fields.get('name'))}; it allows {', '.join(claims.names)}"
        )
    given = {name: fields[name] for name in _FIELDS - {"token", "about"} if name in fields}
    outcome = parse_outcome({**given, "target": _target(fields.get("about", "answer"), claims), "source": _source(claims)})
    if outcome.op == "set":
        _check_value(outcome, rules.get(outcome.name, OutcomeConfig()))
    if len(outcome.event_id) > MAX_EVENT_ID_CHARS:
        raise RecordError(f"event_id has {len(outcome.event_id)} characters; at most {MAX_EVENT_ID_CHARS} are allowed")
    # Event ids are shared by the whole tenant, and the first record of an id wins. With its own id in front, a token
    # cannot use up the ids of others.
    return replace(outcome, event_id=f"{claims.token_id}:{outcome.event_id}") if outcome.event_id else outcome


def _source(claims: TokenClaims) -> dict[str, str]:
    return {"kind": "human", "id": claims.source_id}


def _target(about: Any, claims: TokenClaims) -> dict[str, Any]:
    if about == "answer":
        return claims.target()
    if about == "conversation" and claims.conversation_id is not None:
        return {"conversation_id": claims.conversation_id}
    allowed = "'answer' or 'conversation'" if claims.conversation_id else "'answer'; this token names no conversation"
    raise TokenError(403, f"about is {shown(about)}; allowed is {allowed}")


def _check_value(outcome: Outcome, rule: OutcomeConfig) -> None:
    final, value = outcome.final_answer, outcome.value
    text = final if final is not None else value
    if isinstance(text, str) and len(text.encode()) > MAX_TEXT_BYTES:
        raise RecordError(f"the text has {len(text.encode())} bytes; at most {MAX_TEXT_BYTES} may come from a browser")
    if rule.kind:
        kinds = _KINDS[rule.kind]
        # In Python a bool is an int too, but a thumb is not a rating.
        if (rule.kind == "number" and isinstance(text, bool)) or not isinstance(text, kinds):
            raise RecordError(f"the value of {shown(outcome.name)} is {shown(text)}; it must be a {rule.kind}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not rule.lowest <= value <= rule.highest:
        raise RecordError(f"the value of {shown(outcome.name)} is {shown(value)}; allowed is {rule.lowest:g} to {rule.highest:g}")
