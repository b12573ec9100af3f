"""The tracer: what an app does for one user, recorded as a trace of its own.

A client makes its own spans, all of them and whole, and keeps the current request in its own context variable. The app's
OpenTelemetry set-up is neither used nor touched: its sampler cannot drop training data, and its spans never get one of ours as
their parent. A span of the app that is open when a request starts is linked, to be found.

While an app waits, a span is a few references and one copy of the content (`snapshot`); everything else happens in the
exporter's thread.
"""

from __future__ import annotations

import atexit
import functools
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, cast

from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from nightschool import semconv
from nightschool.errors import ConfigError, RecordError, shown
from nightschool.keys import hash_key, subject_of
from nightschool.outcomes.fields import parse_target
from nightschool.outcomes.record import canonical, parse_outcome
from nightschool.outcomes.tokens import DEFAULT_LIFETIME_S, OutcomeKey, TokenClaims, mint_token, new_token_id
from nightschool.redaction import Rules
from nightschool.redaction.otlp import redact_span
from nightschool.redaction.redactor import Redactor
from nightschool.sdk.calls import ModelCall, ToolCall
from nightschool.sdk.encoding import SpanEncoder
from nightschool.sdk.export.delivery import Delivery, parse_endpoint
from nightschool.sdk.export.exporter import DEFAULT_MAX_QUEUE_BYTES, Exporter, Stats
from nightschool.sdk.openai import chat
from nightschool.sdk.openai.endpoints import CHAT, Endpoint
from nightschool.sdk.outcome_body import _edit, _join_key
from nightschool.sdk.request import Request, _current, is_disabled
from nightschool.sdk.shield import Shield, is_strict
from nightschool.sdk.snapshot import freeze
from nightschool.sdk.span import RANDOM_IDS, IdGenerator, SpanRecord
from nightschool.tenants import check_tenant

AT_EXIT_TIMEOUT_S = 2.0
CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_NO_CONTENT_IN_SPANS = ("NO_CONTENT", "EVENT_ONLY", "FALSE")
UNSET: Any = object()


class Client:
    """Records for one tenant. `nightschool.configure` makes the one that the module's functions use."""

    def __init__(
        self,
        endpoint: str,
        tenant: str,
        *,
        api_key: str,
        subject_key: str | None = None,
        service_name: str | None = None,
        max_queue_bytes: int = DEFAULT_MAX_QUEUE_BYTES,
        capture_content: bool | Mapping[str, bool] | None = None,
        outcome_key: tuple[str, str] | None = None,
        redaction: bool | Rules = True,
        enabled: bool = True,
        clock: Callable[[], int] = time.time_ns,
        id_generator: IdGenerator | None = None,
    ) -> None:
        """`subject_key` is the secret behind all pseudonyms, the SHA-256 of the API key by default; give one to be able to rotate
        the other. `redaction` takes secrets and personal data out before anything leaves the process; False leaves all in.

        With `enabled=False`, or `NIGHTSCHOOL_DISABLED=1` in the environment, nothing is checked, recorded or sent.
        `capture_content` says whether texts are recorded, for all or by task; a task not named is. Without it they are, unless
        OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT keeps them out of spans. `outcome_key` is the id and the secret that
        sign browser tokens (`outcome_token`). `clock` (nanoseconds since the epoch) and `id_generator` are for tests.
        """
        self.shield = Shield()
        self.now_ns = clock
        self.tenant = tenant
        self._exporter: Exporter | None = None
        self._outcome_key: OutcomeKey | None = None
        self._captures: bool | Mapping[str, bool] = True
        self.is_enabled = False
        """Whether anything is recorded; if not, every method does nothing."""
        if not enabled or is_disabled():
            return
        check_tenant(tenant)
        parse_endpoint(endpoint)
        if not isinstance(api_key, str) or not api_key.isascii() or not api_key.isprintable() or not api_key:
            raise ConfigError("api_key must be the tenant's key, printable ASCII text as `nightschool key` printed it")
        if max_queue_bytes <= 0:
            raise ConfigError(f"max_queue_bytes is {max_queue_bytes}; it must be above 0")
        self._captures = self._default_capture() if capture_content is None else _check_capture(capture_content)
        self._outcome_key = OutcomeKey(outcome_key[0], outcome_key[1].strip().encode()) if outcome_key else None
        secret = subject_key or hash_key(api_key)
        redactor = Redactor(redaction if isinstance(redaction, Rules) else Rules(), secret) if redaction else None
        # The same few users come again and again; the cache is bounded, a hash is not slow.
        self._subject_of = functools.lru_cache(maxsize=4096)(functools.partial(subject_of, secret))
        ids = id_generator or RANDOM_IDS
        self._new_trace_id, self._new_span_id = ids.generate_trace_id, ids.generate_span_id
        scrub = functools.partial(redact_span, redactor) if redactor else None
        exporter = Exporter(
            lambda: Delivery(endpoint, api_key),
            SpanEncoder(_resource(tenant, service_name), scope="nightschool", scrub=scrub),
            scrub_outcome=redactor.outcome_json if redactor else bytes,
            max_queue_bytes=max_queue_bytes,
            shield=self.shield,
        )
        self._exporter = exporter
        self.is_enabled = True
        atexit.register(self.shutdown, AT_EXIT_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"<nightschool.Client of tenant {self.tenant!r}, {'on' if self.is_enabled else 'off'}>"

    # --- recording ------------------------------------------------------------------------------------------------------
    def request(
        self,
        *,
        task: str,
        user: object = None,
        conversation: object = None,
        episode: object = None,
        capture_content: bool | None = None,
    ) -> Request:
        """Mark one request of the app; see `nightschool.request`."""
        marks = {"user": user, "conversation": conversation, "episode": episode}
        return Request(lambda: self, task=task, **marks, capture_content=capture_content)

    def model_call(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        provider: str = "custom",
        tools: Sequence[Mapping[str, Any]] | None = None,
        **params: Any,
    ) -> ModelCall:
        """Record a model call made without the `openai` client; see `nightschool.model_call`."""
        return self.start_call({"model": model, "messages": messages, "tools": tools, **params}, provider=provider)

    def start_call(
        self,
        params: Mapping[str, Any],
        *,
        provider: str,
        server: tuple[str, int | None] | None = None,
        endpoint: Endpoint = CHAT,
    ) -> ModelCall:
        """Start the span of a request to `endpoint` given as it is sent."""
        parent = _current.get()
        if parent is not None and parent.client is not self:
            parent = None  # another tenant's
        captures = parent.captures_content if parent is not None else self.captures_content("")
        span: SpanRecord | None = None
        if self._exporter is not None:
            try:
                fields = endpoint.fields_and_content if captures else endpoint.fields
                taken = {name: value for name, value in params.items() if name in fields}
                frozen = freeze(taken)
                request = endpoint.request_attributes(taken) if frozen is None else frozen
                stamps = parent.stamps if parent is not None else self.stamps(captures_content=captures)
                span = self.start_span(f"{endpoint.operation} {params.get('model', '')}", stamps, parent=parent)
                span.attributes = {semconv.GEN_AI_OPERATION_NAME: endpoint.operation, semconv.GEN_AI_PROVIDER_NAME: provider}
                span.endpoint, span.request, span.server = endpoint, request, server
            except Exception as error:
                span = None
                self.shield.caught(error)
        return ModelCall(self, parent, span, captures_content=captures)

    def tool_call(self, name: str, arguments: Any = None, *, call_id: str | None = None) -> ToolCall:
        """Record a run of a tool; see `nightschool.tool_call`."""
        parent = self._current_request()
        captures = parent.captures_content if parent is not None else self.captures_content("")
        span: SpanRecord | None = None
        if self._exporter is not None:
            with self.shield:
                given = chat.dump(arguments) if captures and arguments is not None else None
                said = {
                    semconv.GEN_AI_OPERATION_NAME: "execute_tool",
                    semconv.GEN_AI_TOOL_NAME: str(name),
                    semconv.GEN_AI_TOOL_CALL_ID: call_id,
                    semconv.GEN_AI_TOOL_CALL_ARGUMENTS: given,
                }
                stamps = parent.stamps if parent is not None else self.stamps(captures_content=captures)
                span = self.start_span(f"execute_tool {name}", stamps, parent=parent)
                span.attributes, span.num_text_bytes = chat.compact(said), len(given or "")
        return ToolCall(self, span, captures_content=captures)

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
        """Say what happened after an answer; see `nightschool.outcome`."""
        if self._exporter is None:
            return None
        with self.shield:
            target = {
                "response_id": response_id,
                "trace_id": trace_id,
                "span_id": span_id,
                "conversation_id": conversation_id,
                "turn": turn,
                "episode_id": episode_id,
                "join_key": _join_key(join_key),
            }
            body: dict[str, Any] = {"name": name, "op": op, "event_id": event_id or uuid.uuid4().hex}
            body["target"] = self._target(target)
            body["source"] = {"kind": source, "id": self._pseudonym(rater)}
            body["occurred_at"] = occurred_at.astimezone(UTC).isoformat() if occurred_at else self.now_ns()
            if value is not UNSET:
                body["value"] = value
            if final_text is not None or final_messages is not None:
                body["edit"] = _edit(final_text, final_messages, original_text)
            if demonstration is not None:
                is_text = isinstance(demonstration, str)
                messages = None if is_text else [dict(message) for message in cast("Sequence[Mapping[str, Any]]", demonstration)]
                body["demonstration"] = {"final_text": demonstration} if is_text else {"final_messages": messages}
            body |= {"comment": comment} if comment is not None else {}
            body |= {"metadata": dict(metadata)} if metadata is not None else {}
            return self._put_outcome(self._exporter, body)
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
        """A token that lets a page write outcomes of this answer; see `nightschool.outcome_token`."""
        if self._exporter is None:
            return None
        with self.shield:
            request = self._current_request()
            stamps = request.stamps if request else {}
            now_s = self.now_ns() // 10**9
            claims = TokenClaims(
                tenant=self.tenant,
                trace_id=trace_id or (request.trace_id if request else None) or "",
                names=names,
                issued_at=now_s,
                expires_at=now_s + int(expires_in_s),
                token_id=new_token_id(),
                span_id=span_id,
                conversation_id=str(conversation) if conversation is not None else stamps.get(semconv.GEN_AI_CONVERSATION_ID),
                rater=self._pseudonym(user) if user is not None else stamps.get(semconv.SUBJECT),
            )
            return self._minted(claims)
        return None

    def _minted(self, claims: TokenClaims) -> str | None:
        try:
            if self._outcome_key is None:
                raise ConfigError("no key signs browser tokens; give configure(..., outcome_key=(KID, SECRET))")
            return mint_token(self._outcome_key, claims)
        except (ConfigError, RecordError) as error:
            self.shield.log_once(f"no outcome token is made: {error}")
            if is_strict(default=False):
                raise
            return None

    def _put_outcome(self, exporter: Exporter, body: dict[str, Any]) -> str | None:
        try:
            outcome = parse_outcome(body)
            encoded = canonical(outcome.to_json()).encode()
        except (RecordError, TypeError) as error:  # TypeError: metadata that JSON cannot carry
            exporter.count_invalid_outcome()
            self.shield.log_once(f"an outcome is left out: {error}")
            if is_strict(default=False):
                raise
            return None
        exporter.put_outcome(encoded)
        return outcome.event_id

    def _target(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The target given, or the request now worked on when none is; a span alone is one of that request."""
        target = {name: value for name, value in given.items() if value is not None}
        request = self._current_request()
        if request and not target.keys() - {"span_id"}:
            target["trace_id"] = request.trace_id
        return target

    # --- export ---------------------------------------------------------------------------------------------------------
    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until nothing recorded so far waits any more, stored or refused for good; False after `timeout` seconds."""
        return self._exporter.flush(timeout) if self._exporter else True

    def shutdown(self, timeout: float = 10.0) -> bool:
        """Flush and stop; what is not out within `timeout` seconds is dropped and counted. Safe to call again."""
        atexit.unregister(self.shutdown)
        return self._exporter.shutdown(timeout) if self._exporter else True

    def stats(self) -> Stats:
        """What became of everything recorded so far."""
        return self._exporter.stats() if self._exporter else Stats()

    # --- for requests and calls -----------------------------------------------------------------------------------------
    def start_span(self, name: str, stamps: Mapping[str, Any], *, parent: Request | None) -> SpanRecord:
        """Start a span below `parent`, or a trace of its own, never below a span of the app."""
        if parent is None or (above := parent.span) is None:
            return SpanRecord(name, self._new_trace_id(), self._new_span_id(), 0, stamps, self.now_ns())
        return SpanRecord(name, above.trace_id, self._new_span_id(), above.span_id, stamps, self.now_ns())

    def end_span(self, span: SpanRecord) -> None:
        """End `span` and hand it to the exporter."""
        span.ended_ns = self.now_ns()
        if self._exporter is not None:
            self._exporter.put_span(span)

    def stamps(
        self,
        *,
        task: object = None,
        user: object = None,
        conversation: object = None,
        episode: object = None,
        captures_content: bool = True,
    ) -> dict[str, Any]:
        """What every span of a request carries."""
        stamps: dict[str, Any] = {semconv.SPAN_SIDE: "app"}
        if task:
            stamps[semconv.TASK] = str(task)
        if user is not None:
            stamps[semconv.SUBJECT] = self._pseudonym(user)
        if conversation is not None:
            stamps[semconv.GEN_AI_CONVERSATION_ID] = str(conversation)
        if episode is not None:
            stamps[semconv.EPISODE_ID] = str(episode)
        if not captures_content:
            stamps[semconv.CONTENT_CAPTURE] = False
        return stamps

    def checked_join_key(self, ns: object, id: object) -> dict[str, str] | None:  # noqa: A002
        """A join key as outcomes write it; None, and a line in the log, for one that no outcome could name."""
        try:
            return parse_target({"join_key": {"ns": ns, "id": str(id)}})["join_key"]  # type: ignore[no-any-return]
        except RecordError as error:
            self.shield.log_once(f"a request is not tagged: {error}")
            if is_strict(default=False):
                raise
            return None

    def _default_capture(self) -> bool:
        """What OpenTelemetry's own variable says, loudly where it turns content off: nothing could be learned then."""
        said = os.environ.get(CAPTURE_VARIABLE, "").strip()
        if said.upper() not in _NO_CONTENT_IN_SPANS:
            return True
        self.shield.log_once(f"texts are not recorded, because {CAPTURE_VARIABLE} is {said}; capture_content=True records them")
        return False

    def captures_content(self, task: str) -> bool:
        """Whether texts of `task` are recorded."""
        return self._captures if isinstance(self._captures, bool) else self._captures.get(task, True)

    def _pseudonym(self, user: object) -> str:
        return "" if user is None else self._subject_of(str(user))

    def _current_request(self) -> Request | None:
        request = _current.get()
        return request if request is not None and request.client is self else None


def _resource(tenant: str, service_name: str | None) -> Mapping[str, Any]:
    """What every request says of this process; read from the environment as OpenTelemetry does."""
    ours = {semconv.TENANT_ID: tenant, **({SERVICE_NAME: service_name} if service_name else {})}
    return Resource.create(ours).attributes


def _check_capture(given: bool | Mapping[str, bool]) -> bool | Mapping[str, bool]:
    """`capture_content` as given; a copy of a mapping, so that the app's may change."""
    if isinstance(given, bool):
        return given
    if isinstance(given, Mapping) and all(isinstance(value, bool) for value in given.values()):
        return dict(given)
    raise ConfigError(
        f"capture_content is {shown(given)}; it must be True, False, or a mapping of tasks to them like {{'triage': False}}"
    )
