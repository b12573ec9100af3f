"""The functions an app calls, on the client that `configure` made.

Before `configure`, and with `NIGHTSCHOOL_DISABLED=1`, all of them do nothing. Inside a request of another `Client` they use
that client, so one process can work for several tenants.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from nightschool.calls import ModelCall
from nightschool.exporter import DEFAULT_MAX_QUEUE_BYTES, Stats
from nightschool.tracer import AT_EXIT_TIMEOUT_S, UNSET, Client, Request, current_request, is_disabled

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
    capture_content: bool | Mapping[str, bool] = True,
) -> Client:
    """Record for `tenant` and send to the collector at `endpoint`; returns the client, which needs no keeping.

    Users are sent as pseudonyms keyed by `subject_key`, the API key by default. At most `max_queue_bytes` wait in memory.
    Texts, tools and token ids are recorded unless `capture_content` is False, or `{"triage": False}` for single tasks; spans
    are recorded always. A second call replaces the first client, after sending what it holds. A bad argument raises `ConfigError`.
    """
    client = Client(
        endpoint,
        tenant,
        api_key=api_key,
        subject_key=subject_key,
        service_name=service_name,
        max_queue_bytes=max_queue_bytes,
        capture_content=capture_content,
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


def request(*, task: str, user: object = None, conversation: object = None, capture_content: bool | None = None) -> Request:
    """Mark one request of the app, as `with nightschool.request(task="triage", user="mia") as req:` or as a decorator.

    Everything recorded inside carries the task, a pseudonym of `user` and the conversation, and is one trace. With
    `capture_content=False` neither texts nor token ids are recorded inside, whatever `configure` says of the task.
    """
    return Request(_client, task=task, user=user, conversation=conversation, capture_content=capture_content)


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


def instrument_openai() -> None:
    """Record every chat completion of the official `openai` client, also of clients made before. Calling it again is free."""
    if not is_disabled():
        from nightschool.instrument import instrument

        instrument(_client)


def outcome(
    name: str,
    value: Any = UNSET,
    *,
    final_text: str | None = None,
    response_id: str | None = None,
    trace_id: str | None = None,
    conversation_id: str | None = None,
    episode_id: str | None = None,
    join_key: tuple[str, str] | Mapping[str, str] | None = None,
    rater: object = None,
    source: Literal["human", "code", "llm", "system"] = "human",
    comment: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    op: Literal["set", "retract"] = "set",
    occurred_at: datetime | None = None,
    event_id: str | None = None,
) -> str | None:
    """Say what happened after an answer: a `value` (a thumb, the queue chosen in the end) or the human's own `final_text`.

    It may come days later and be corrected: the same rater's newest outcome of a name counts, `op="retract"` takes it back.
    The target is one of `response_id`, `trace_id`, `conversation_id`, `episode_id` and `join_key`; inside a request, none
    means that request. `rater` is sent as a pseudonym. Returns the event id, None when nothing was recorded. What can never
    be understood is logged and counted as invalid; with `NIGHTSCHOOL_STRICT=1` it raises `RecordError`.
    """
    return _client().outcome(
        name,
        value,
        final_text=final_text,
        response_id=response_id,
        trace_id=trace_id,
        conversation_id=conversation_id,
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


def flush(timeout: float = 10.0) -> bool:
    """Wait until everything recorded so far is acknowledged; False when that took longer than `timeout` seconds.

    For scripts and worker processes that end without `atexit`; never needed while serving.
    """
    return _default.flush(timeout)


def shutdown(timeout: float = 10.0) -> bool:
    """Flush and stop recording; what is not out within `timeout` seconds is dropped and counted."""
    return _default.shutdown(timeout)


def stats() -> Stats:
    """What became of the spans and outcomes recorded so far in this process."""
    return _default.stats()
