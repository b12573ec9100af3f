"""The functions an app calls, on the client that `configure` made.

Before `configure`, and with `NIGHTSCHOOL_DISABLED=1`, all of them do nothing. Inside a request of another `Client` they
use that client, so that one process can work for several tenants.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from nightschool.redaction import Rules
from nightschool.sdk.calls import ModelCall, ToolCall
from nightschool.sdk.client import AT_EXIT_TIMEOUT_S, Client, is_disabled
from nightschool.sdk.export.exporter import DEFAULT_MAX_QUEUE_BYTES, Stats
from nightschool.sdk.request import Request, current_request
from nightschool.sdk.signatures import function_like

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
    """Record for `tenant` and send to the collector at `endpoint`; returns the client, which the app need not keep.

    Users are sent as pseudonyms made with `subject_key`, by default the SHA-256 of the API key. Secrets and personal
    data are replaced by pseudonyms before anything leaves the process; `redaction` takes `nightschool.redaction.Rules`
    in place of the default ones, or False for no redaction. At most `max_queue_bytes` wait in memory.

    Texts, tools and token ids are recorded unless `capture_content` is False, or `{"triage": False}` for single tasks;
    spans are recorded in any case. `outcome_key` is the id and the secret of `[tenants.NAME] outcome_keys` that sign
    browser tokens.

    A second call sends what the first client holds and replaces it. A bad argument raises `ConfigError`.
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
    """Make these functions use `client`, and stop the client they used before."""
    global _default, _is_configured
    with _lock:
        previous, _default, _is_configured = _default, client, True
    if previous is not client:
        previous.shutdown(AT_EXIT_TIMEOUT_S)
    return client


def _client() -> Client:
    """The client of the current request, else the configured one."""
    request = current_request()
    if request is not None and isinstance(request.client, Client):
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

    Everything recorded inside is one trace, and carries the task, a pseudonym of `user`, the conversation and the app's
    own id of the `episode`. With `capture_content=False` neither texts nor token ids are recorded inside, whatever
    `configure` was told about the task.
    """
    marks = {"user": user, "conversation": conversation, "episode": episode}
    return Request(_client, task=task, **marks, capture_content=capture_content)


def tag_join(ns: str, id: object) -> None:  # noqa: A002 - what the wire calls it
    """Give the current request an id of the app's own, as `tag_join("ticket", "T-42")`; see `Request.tag_join`.

    An outcome may then say `join_key=("ticket", "T-42")`, from any system that knows the ticket but not the trace.
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

    `with nightschool.model_call("m", messages) as call: call.answer(ask(messages, headers=call.headers))`. Messages
    have the form of OpenAI's chat API, and request parameters have their OpenAI names.
    """
    return _client().model_call(model, messages, provider=provider, tools=tools, **params)


def tool_call(name: str, arguments: Any = None, *, call_id: str | None = None) -> ToolCall:
    """Record a run of a tool.

    `with nightschool.tool_call("weather", {"city": "Riga"}, call_id=id) as tool: tool.result(run())`. `call_id` is the
    id that the model gave to its call. The messages of the next model call hold the result too; a span of the run adds
    how long it took, and the error when there was one.
    """
    return _client().tool_call(name, arguments, call_id=call_id)


def instrument_openai() -> None:
    """Record every model call of the official `openai` client, of existing clients too. A second call does nothing."""
    if not is_disabled():
        from nightschool.sdk.openai.instrument import instrument

        instrument(_client)


@function_like(Client.outcome)
def outcome(*args: Any, **kwargs: Any) -> str | None:
    """Say what happened after an answer.

    Give one of these: a `value` (a thumb, or the queue that was chosen in the end); the `final_text` or
    `final_messages` that a human made of the answer, with the answer as `original_text` where the app has it; or a
    `demonstration`, which is what a human answered without using the model's answer.

    An outcome may come days later, and it may be corrected: of the outcomes of one name by one rater about one target
    the newest counts, and `op="retract"` takes it back. Its target is one of `response_id`, `trace_id` (perhaps with a
    `span_id`), `conversation_id` (perhaps with a `turn`, from 0), `episode_id` and `join_key` (see `tag_join`); inside
    a request and without a target, it is that request. `rater` is sent as a pseudonym.

    Returns the event id, None when nothing was recorded. An outcome that can never be understood is logged and counted
    as invalid; with `NIGHTSCHOOL_STRICT=1` it raises `RecordError`.
    """
    return _client().outcome(*args, **kwargs)


@function_like(Client.outcome_token)
def outcome_token(*args: Any, **kwargs: Any) -> str | None:
    """A token with which a page can say how this answer turned out, as `outcome_token("thumb", "csat")`.

    It is made without a network. It allows outcomes of these names only, about the current request (or `trace_id`), by
    its user (or `user`), for 30 days (or `expires_in_s` seconds). None when nothing is recorded, or when `configure`
    was given no `outcome_key`.
    """
    return _client().outcome_token(*args, **kwargs)


def flush(timeout: float = 10.0) -> bool:
    """Wait until the collector has answered for everything recorded so far; False after `timeout` seconds.

    `stats()` tells what was acknowledged and what was refused for good.

    For scripts and for worker processes that end without running `atexit`; an app that serves never needs it.
    """
    return _default.flush(timeout)


def shutdown(timeout: float = 10.0) -> bool:
    """Flush and stop recording; what is not sent within `timeout` seconds is dropped and counted."""
    return _default.shutdown(timeout)


def stats() -> Stats:
    """What became of the spans and outcomes recorded so far in this process."""
    return _default.stats()
