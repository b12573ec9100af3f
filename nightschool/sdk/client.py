"""The client: records for one tenant what an app does, each request of the app as a trace of its own.

A client makes its own spans and never samples them, and it keeps the current request in a context variable of its own.
The app's OpenTelemetry setup is neither used nor changed: its sampler cannot drop training data, and no span of ours
becomes the parent of a span of the app. A request that starts inside a span of the app has a link to that span, so that
the two can be found together.

While the app waits, recording a span costs a few references and one copy of the content (`snapshot`); everything else
happens in the exporter's thread.
"""

from __future__ import annotations

import atexit
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from nightschool import semconv
from nightschool.errors import ConfigError
from nightschool.keys import hash_key, subject_of, tenant_named_in
from nightschool.outcomes.tokens import OutcomeKey
from nightschool.redaction import Rules
from nightschool.redaction.otlp import redact_span
from nightschool.redaction.redactor import Redactor
from nightschool.sdk.calls import ModelCall, ToolCall, start_model_call, start_tool_call
from nightschool.sdk.content_capture import ContentCapture, parse_capture
from nightschool.sdk.encoding import SpanEncoder
from nightschool.sdk.export.delivery import Delivery, parse_endpoint
from nightschool.sdk.export.exporter import DEFAULT_MAX_QUEUE_BYTES, Exporter, Stats
from nightschool.sdk.outcome_writer import OutcomeWriter
from nightschool.sdk.request import Request
from nightschool.sdk.shield import Shield
from nightschool.sdk.signatures import method_like
from nightschool.sdk.span import RANDOM_IDS, IdGenerator, SpanRecord
from nightschool.tenants import check_tenant

AT_EXIT_TIMEOUT_S = 2.0
"""How long the end of the app's process may wait until everything is sent."""
_MAX_KNOWN_SUBJECTS = 4096
"""Pseudonyms kept, because the same few users come again and again. Making one anew costs a hash, which is not slow."""


def is_disabled() -> bool:
    """Whether `NIGHTSCHOOL_DISABLED` turns every client off."""
    return os.environ.get("NIGHTSCHOOL_DISABLED", "").lower() in ("1", "true", "yes")


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
        """`subject_key` is the secret that makes all pseudonyms, by default the SHA-256 of the API key; with one of its
        own, the API key can be replaced without changing them. `redaction` takes secrets and personal data out before
        anything leaves the process; False leaves everything in.

        With `enabled=False`, or `NIGHTSCHOOL_DISABLED=1` in the environment, nothing is checked, recorded or sent.
        `capture_content` says whether texts are recorded: for all tasks, or by task, and then tasks not named are
        recorded. Without it they are recorded, unless OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT keeps them out
        of spans. `outcome_key` is the id and the secret that sign browser tokens (`outcome_token`). `clock`
        (nanoseconds since 1970) and `id_generator` are for tests. A bad argument raises `ConfigError`.
        """
        self.shield = Shield()
        self.now_ns = clock
        self.tenant = tenant
        self.is_enabled = enabled and not is_disabled()
        """Whether anything is recorded; if not, every method does nothing."""
        self._exporter: Exporter | None = None
        self._capture = ContentCapture()
        self._outcomes = OutcomeWriter(self, tenant)
        if not self.is_enabled:
            return
        check_tenant(tenant)
        parse_endpoint(endpoint)
        if not isinstance(api_key, str) or not api_key.isascii() or not api_key.isprintable() or not api_key:
            raise ConfigError("api_key must be the tenant's key, printable ASCII text as `nightschool key` printed it")
        if (named := tenant_named_in(api_key)) not in (None, tenant):
            # No error: a tenant may have been renamed, and the collector goes by the key.
            self.shield.log_once(
                f"api_key is a key of tenant {named!r}, but tenant is {tenant!r}: the collector goes by the key; "
                "if that is no renamed tenant, correct one of them"
            )
        if max_queue_bytes <= 0:
            raise ConfigError(f"max_queue_bytes is {max_queue_bytes}; it must be above 0")
        self._capture = parse_capture(capture_content, self.shield)
        signing_key = OutcomeKey(outcome_key[0], outcome_key[1].strip().encode()) if outcome_key else None
        secret = subject_key or hash_key(api_key)
        redactor = Redactor(redaction if isinstance(redaction, Rules) else Rules(), secret) if redaction else None
        self._subject_of = functools.lru_cache(maxsize=_MAX_KNOWN_SUBJECTS)(functools.partial(subject_of, secret))
        ids = id_generator or RANDOM_IDS
        self._new_trace_id, self._new_span_id = ids.generate_trace_id, ids.generate_span_id
        scrub = functools.partial(redact_span, redactor) if redactor else None
        self._exporter = Exporter(
            lambda: Delivery(endpoint, api_key),
            SpanEncoder(_resource(tenant, service_name), scope="nightschool", scrub=scrub),
            scrub_outcome=redactor.outcome_json if redactor else bytes,
            max_queue_bytes=max_queue_bytes,
            shield=self.shield,
        )
        self._outcomes = OutcomeWriter(self, tenant, self._exporter, key=signing_key)
        atexit.register(self.shutdown, AT_EXIT_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"<nightschool.Client of tenant {self.tenant!r}, {'on' if self.is_enabled else 'off'}>"

    # --- recording ----------------------------------------------------------------------------------------------------
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
        sent = {"model": model, "messages": messages, "tools": tools, **params}
        return start_model_call(self, sent, provider=provider)

    def tool_call(self, name: str, arguments: Any = None, *, call_id: str | None = None) -> ToolCall:
        """Record a run of a tool; see `nightschool.tool_call`."""
        return start_tool_call(self, name, arguments, call_id=call_id)

    @method_like(OutcomeWriter.outcome)
    def outcome(self, *args: Any, **kwargs: Any) -> str | None:
        """Say what happened after an answer; see `nightschool.outcome`."""
        return self._outcomes.outcome(*args, **kwargs)

    @method_like(OutcomeWriter.outcome_token)
    def outcome_token(self, *args: Any, **kwargs: Any) -> str | None:
        """A token that lets a page write outcomes of this answer; see `nightschool.outcome_token`."""
        return self._outcomes.outcome_token(*args, **kwargs)

    # --- export -------------------------------------------------------------------------------------------------------
    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything recorded so far is stored or refused for good; False after `timeout` seconds."""
        return self._exporter.flush(timeout) if self._exporter else True

    def shutdown(self, timeout: float = 10.0) -> bool:
        """Flush and stop; what is not sent within `timeout` seconds is dropped and counted. It may be called again."""
        atexit.unregister(self.shutdown)
        return self._exporter.shutdown(timeout) if self._exporter else True

    def stats(self) -> Stats:
        """What became of everything recorded so far."""
        return self._exporter.stats() if self._exporter else Stats()

    # --- for requests and calls (see `Recorder`) ----------------------------------------------------------------------
    def start_span(self, name: str, stamps: Mapping[str, Any], *, parent: SpanRecord | None) -> SpanRecord:
        """Start a span below `parent`, or a trace of its own without one; never below a span of the app."""
        if parent is None:
            return SpanRecord(name, self._new_trace_id(), self._new_span_id(), 0, stamps, self.now_ns())
        return SpanRecord(name, parent.trace_id, self._new_span_id(), parent.span_id, stamps, self.now_ns())

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
        """The attributes that every span of a request carries."""
        stamps: dict[str, Any] = {semconv.SPAN_SIDE: "app"}
        if task:
            stamps[semconv.TASK] = str(task)
        if user is not None:
            stamps[semconv.SUBJECT] = self.pseudonym(user)
        if conversation is not None:
            stamps[semconv.GEN_AI_CONVERSATION_ID] = str(conversation)
        if episode is not None:
            stamps[semconv.EPISODE_ID] = str(episode)
        if not captures_content:
            stamps[semconv.CONTENT_CAPTURE] = False
        return stamps

    def captures_content(self, task: str) -> bool:
        """Whether texts of `task` are recorded."""
        return self._capture.of(task)

    def pseudonym(self, user: object) -> str:
        """What is sent in place of `user`; empty for None."""
        return "" if user is None else self._subject_of(str(user))


def _resource(tenant: str, service_name: str | None) -> Mapping[str, Any]:
    """What every export says of this process; read from the environment as OpenTelemetry does."""
    ours = {semconv.TENANT_ID: tenant, **({SERVICE_NAME: service_name} if service_name else {})}
    return Resource.create(ours).attributes
