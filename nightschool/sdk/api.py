"""The functions an app calls, on the client that `configure` made.

Before `configure`, and with `NIGHTSCHOOL_DISABLED=1`, all of them do nothing. Inside a request of another `Client` they use
that client, so one process can work for several tenants.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from nightschool.outcomes.tokens import DEFAULT_LIFETIME_S
from nightschool.redaction import Rules
from nightschool.sdk.calls import ModelCall, ToolCall
from nightschool.sdk.client import AT_EXIT_TIMEOUT_S, UNSET, Client
from nightschool.sdk.export.exporter import DEFAULT_MAX_QUEUE_BYTES, Stats
from nightschool.sdk.request import Request, current_request, is_disabled

_lock = threading.Lock()
_default = Client("", "", api_key="", enabled=False)
_is_configured = False


def configure(
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
) -> Client:
    """Record for `tenant` and send to the collector at `endpoint`; returns the client, which needs no keeping.

    Users are sent as pseudonyms keyed by `subject_key`, the SHA-256 of the API key by default. Secrets and personal data are
    replaced by pseudonyms before anything leaves the process: `redaction` takes other `nightschool.redaction.Rules` than the
    default ones, or False. At most `max_queue_bytes` wait in memory.
    Texts, tools and token ids are recorded unless `capture_content` is False, or `{"triage": False}` for single tasks; spans
    are recorded always. `outcome_key` is the id and the secret of `[tenants.NAME] outcome_keys` that sign browser tokens. A
    second call replaces the first client, after sending what it holds. A bad argument raises `ConfigError`.
    """
    client = Client(
        endpoint,
        tenant,
        api_key=api_key,
        subject_key=subject_key,
        service_name=service_name,
        max_queue_bytes=max_queue_bytes,
        capture_content=capture_content,
        outcome_key=outcome_key,
        redaction=redaction,
    )
    return use(client)


def use(client: Client) -> Client:
    """Make `client` the one these functions use, and stop the one before."""
    global _default, _is_configured
    with _lock:
        previous, _default, _is_configured = _default, client, True
    if previous is not client:
        previous.shutdown(AT_EXIT_TIMEOUT_S)
    return client


def _client() -> Client:
    """The client of the current request, else the configured one."""
    request = current_request()
    if request is not None and request.client is not None:
        return request.client
    if not _is_configured and not is_disabled():
        _default.shield.log_once("nightschool.configure(...) was not called: nothing is recorded")
    return _default


def request(
    *,
    task: str,
    user: object = None,
    conversation: object = None,
    episode: object = None,
    capture_content: bool | None = None,
) -> Request:
    """Mark one request of the app, as `with nightschool.request(task="triage", user="mia") as req:` or as a decorator.

    Everything recorded inside carries the task, a pseudonym of `user`, the conversation and the app's own id of the `episode`,
    and is one trace. With `capture_content=False` neither texts nor token ids are recorded inside, whatever `configure` says of
    the task.
    """
    marks = {"user": user, "conversation": conversation, "episode": episode}
    return Request(_client, task=task, **marks, capture_content=capture_content)


def tag_join(ns: str, id: object) -> None:  # noqa: A002 - what the wire calls it
    """Give the request now worked on a name of the app's own, as `tag_join("ticket", "T-42")`; see `Request.tag_join`.

    An outcome may then say `join_key=("ticket", "T-42")`, from any system that knows the ticket and nothing of traces.
    """
    request = current_request()
    if request is not None:
        request.tag_join(ns, id)


def model_call(
    model: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    provider: str = "custom",
    tools: Sequence[Mapping[str, Any]] | None = None,
    **params: Any,
) -> ModelCall:
    """Record a model call made without the `openai` client.

    `with nightschool.model_call("m", messages) as call: call.answer(ask(messages, headers=call.headers))`, with messages in
    the OpenAI chat form and request parameters by their OpenAI names.
    """
    return _client().model_call(model, messages, provider=provider, tools=tools, **params)


def tool_call(name: str, arguments: Any = None, *, call_id: str | None = None) -> ToolCall:
    """Record a run of a tool, `with nightschool.tool_call("weather", {"city": "Riga"}, call_id=id) as tool: tool.result(run())`.

    `call_id` is the id that the model gave its call. What the model is told of the result is in the messages anyway; a span of
    its own also has the time it took, and the error when there was one.
    """
    return _client().tool_call(name, arguments, call_id=call_id)


def instrument_openai() -> None:
    """Record every chat completion of the official `openai` client, also of clients made before. Calling it again is free."""
    if not is_disabled():
        from nightschool.sdk.openai.instrument import instrument

        instrument(_client)


def outcome(
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
    """Say what happened after an answer: a `value` (a thumb, the queue chosen in the end), the `final_text` or `final_messages`
    that a human made of it (`original_text` says of which text), or a `demonstration`, what a human answered on their own.

    It may come days later and be corrected: the same rater's newest outcome of a name counts, `op="retract"` takes it back.
    The target is one of `response_id`, `trace_id` (with a `span_id`), `conversation_id` (with a `turn`, from 0), `episode_id` and
    `join_key` (see `tag_join`); inside a request, none means that request. `rater` is sent as a pseudonym. Returns the event id,
    None when nothing was recorded. What can never be understood is logged and counted as invalid; with `NIGHTSCHOOL_STRICT=1` it
    raises `RecordError`.
    """
    return _client().outcome(
        name,
        value,
        final_text=final_text,
        final_messages=final_messages,
        original_text=original_text,
        demonstration=demonstration,
        response_id=response_id,
        trace_id=trace_id,
        span_id=span_id,
        conversation_id=conversation_id,
        turn=turn,
        episode_id=episode_id,
        join_key=join_key,
        rater=rater,
        source=source,
        comment=comment,
        metadata=metadata,
        op=op,
        occurred_at=occurred_at,
        event_id=event_id,
    )


def outcome_token(
    *names: str,
    user: object = None,
    trace_id: str | None = None,
    span_id: str | None = None,
    conversation: object = None,
    expires_in_s: float = DEFAULT_LIFETIME_S,
) -> str | None:
    """A token that a page sends back to say how this answer turned out, as `outcome_token("thumb", "csat")`; needs no network.

    It allows these names, about the request now worked on (or `trace_id`), as its user (or `user`), for 30 days (or
    `expires_in_s`), and nothing else. None when nothing is recorded, or `configure` was given no `outcome_key`.
    """
    return _client().outcome_token(
        *names, user=user, trace_id=trace_id, span_id=span_id, conversation=conversation, expires_in_s=expires_in_s
    )


def flush(timeout: float = 10.0) -> bool:
    """Wait until nothing recorded so far waits any more; False when that took longer than `timeout` seconds.

    True says that all of it was answered: `stats()` tells what was acknowledged and what was refused for good.

    For scripts and worker processes that end without `atexit`; never needed while serving.
    """
    return _default.flush(timeout)


def shutdown(timeout: float = 10.0) -> bool:
    """Flush and stop recording; what is not out within `timeout` seconds is dropped and counted."""
    return _default.shutdown(timeout)


def stats() -> Stats:
    """What became of the spans and outcomes recorded so far in this process."""
    return _default.stats()
