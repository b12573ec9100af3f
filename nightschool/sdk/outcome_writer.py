"""Writes the outcomes of one client, and signs the tokens that let a page write them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from nightschool import semconv
from nightschool.errors import ConfigError, RecordError
from nightschool.outcomes.record import canonical, parse_outcome
from nightschool.outcomes.tokens import DEFAULT_LIFETIME_S, OutcomeKey, TokenClaims, mint_token, new_token_id
from nightschool.sdk.export.exporter import Exporter
from nightschool.sdk.outcome_body import demonstration_of, edit_of, join_key_of
from nightschool.sdk.recorder import Recorder
from nightschool.sdk.request import request_of
from nightschool.sdk.shield import is_strict

UNSET: Any = object()
"""Stands for a value that was not given: None is a value."""


class OutcomeWriter:
    """Makes outcomes of what an app says and queues them."""

    def __init__(self, client: Recorder, tenant: str, exporter: Exporter | None = None, *, key: OutcomeKey | None = None) -> None:
        """Without an `exporter` nothing is written. `key` signs tokens; without one there are none."""
        self._client = client
        self._tenant = tenant
        self._exporter = exporter
        self._key = key

    def outcome(
        self,
        name: str,
        value: Any = UNSET,
        *,
        final_text: str | None = None,
        final_messages: Sequence[Mapping[str, Any]] | None = None,
        original_text: str | None = None,
        demonstration: str | Sequence[Mapping[str, Any]] | None = None,
        response_id: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        conversation_id: str | None = None,
        turn: int | None = None,
        episode_id: str | None = None,
        join_key: tuple[str, object] | Mapping[str, str] | None = None,
        rater: object = None,
        source: Literal["human", "code", "llm", "system"] = "human",
        comment: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        op: Literal["set", "retract"] = "set",
        occurred_at: datetime | None = None,
        event_id: str | None = None,
    ) -> str | None:
        """Write one outcome; `nightschool.outcome` says what each argument means. Returns the event id."""
        if self._exporter is None:
            return None
        with self._client.shield:
            target = {
                "response_id": response_id,
                "trace_id": trace_id,
                "span_id": span_id,
                "conversation_id": conversation_id,
                "turn": turn,
                "episode_id": episode_id,
                "join_key": join_key_of(join_key),
            }
            body: dict[str, Any] = {"name": name, "op": op, "event_id": event_id or uuid.uuid4().hex}
            body["target"] = self._target(target)
            body["source"] = {"kind": source, "id": self._client.pseudonym(rater)}
            body["occurred_at"] = occurred_at.astimezone(UTC).isoformat() if occurred_at else self._client.now_ns()
            if value is not UNSET:
                body["value"] = value
            if final_text is not None or final_messages is not None:
                body["edit"] = edit_of(final_text, final_messages, original_text)
            if demonstration is not None:
                body["demonstration"] = demonstration_of(demonstration)
            if comment is not None:
                body["comment"] = comment
            if metadata is not None:
                body["metadata"] = dict(metadata)
            return self._put(self._exporter, body)
        return None

    def outcome_token(
        self,
        *names: str,
        user: object = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        conversation: object = None,
        expires_in_s: float = DEFAULT_LIFETIME_S,
    ) -> str | None:
        """Sign a token; `nightschool.outcome_token` says what each argument means."""
        if self._exporter is None:
            return None
        with self._client.shield:
            request = request_of(self._client)
            stamps = request.stamps if request else {}
            now_s = self._client.now_ns() // 10**9
            claims = TokenClaims(
                tenant=self._tenant,
                trace_id=trace_id or (request.trace_id if request else None) or "",
                names=names,
                issued_at=now_s,
                expires_at=now_s + int(expires_in_s),
                token_id=new_token_id(),
                span_id=span_id,
                conversation_id=str(conversation) if conversation is not None else stamps.get(semconv.GEN_AI_CONVERSATION_ID),
                rater=self._client.pseudonym(user) if user is not None else stamps.get(semconv.SUBJECT),
            )
            return self._signed(claims)
        return None

    def _signed(self, claims: TokenClaims) -> str | None:
        try:
            if self._key is None:
                raise ConfigError("no key signs browser tokens; give configure(..., outcome_key=(KID, SECRET))")
            return mint_token(self._key, claims)
        except (ConfigError, RecordError) as error:
            self._client.shield.log_once(f"no outcome token is made: {error}")
            if is_strict(default=False):
                raise
            return None

    def _put(self, exporter: Exporter, body: dict[str, Any]) -> str | None:
        try:
            outcome = parse_outcome(body)
            encoded = canonical(outcome.to_json()).encode()
        except (RecordError, TypeError) as error:  # TypeError: metadata that JSON cannot carry
            exporter.count_invalid_outcome()
            self._client.shield.log_once(f"an outcome is left out: {error}")
            if is_strict(default=False):
                raise
            return None
        exporter.put_outcome(encoded)
        return outcome.event_id

    def _target(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The target that was given; the current request when none was, also for a span of it given alone."""
        target = {name: value for name, value in given.items() if value is not None}
        request = request_of(self._client)
        if request and not target.keys() - {"span_id"}:
            target["trace_id"] = request.trace_id
        return target
