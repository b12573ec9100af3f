"""The tenant guard, in front of a small ASGI app of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace
from typing import Any

import pytest

from nightschool.keys import KeyRing, hash_key
from nightschool_serving.front.bodies import BodyLimits
from nightschool_serving.front.guard import RequestContext, TenantGuard

KEYS = KeyRing({"bank": [hash_key("bank-key")], "telecom": [hash_key("telecom-key")]})
CHAT = ("POST", "/v1/chat/completions")


class Inner:
    """Stands for vLLM's app: remembers what it was called with, reads the body, answers 200 with it."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.release: str | None = None
        self.error: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        message = await receive()
        context: RequestContext | None = scope.get("state", {}).get("nightschool_request")
        if context:
            context.release = self.release
        if self.error:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-inner", b"1")]})
        await send({"type": "http.response.body", "body": message.get("body", b"")})


async def call(
    inner: Inner,
    route: tuple[str, str] = CHAT,
    *,
    key: str | None = "bank-key",
    ready: Any = True,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    body: tuple[bytes, ...] = (b"{}",),
    draining: bool = False,
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body of one request through the guard; `ready=None` is an app without our plugin."""
    serving = SimpleNamespace(ready=ready, draining=draining, in_progress=0)
    state = SimpleNamespace() if ready is None else SimpleNamespace(nightschool_serving=serving)
    authorization = ((b"authorization", f"Bearer {key}".encode()),) if key else ()
    scope = {
        "type": "http",
        "method": route[0],
        "path": route[1],
        "headers": [*authorization, *headers],
        "app": SimpleNamespace(state=state),
    }
    chunks = [{"type": "http.request", "body": chunk, "more_body": i + 1 < len(body)} for i, chunk in enumerate(body)]
    sent: list[Any] = []

    async def receive() -> Any:
        return chunks.pop(0) if chunks else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await TenantGuard(inner, KEYS, BodyLimits(body_bytes=1000))(scope, receive, send)
    if not sent:
        return 0, {}, b""
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(
    "route",
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/adapters"),
        ("DELETE", "/adapters/x"),
        ("POST", "/invocations"),
        ("GET", "/ping"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/chat/completions/batch"),
        ("POST", "/v1/chat/completions/render"),
        ("POST", "/inference/v1/generate"),
        ("POST", "/tokenize"),
        ("GET", "/load"),
        ("GET", "/version"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/v1/chat/completions"),
        ("OPTIONS", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "//v1/chat/completions"),
        ("POST", "/v1/models"),
        ("GET", "/a/route/of/a/later/vllm"),
    ],
)
async def test_a_route_that_is_not_listed_does_not_exist(route: tuple[str, str]) -> None:
    """Everything but the five listed routes is 404 even with a good key, and never reaches vLLM."""
    inner = Inner()
    status, _, body = await call(inner, route)
    assert (status, inner.scopes) == (404, [])
    assert json.loads(body)["error"]["code"] == 404


@pytest.mark.parametrize("key", [None, "", "wrong", "bank-key2", "bank-key telecom-key"])
async def test_a_request_without_a_known_key_is_refused(key: str | None) -> None:
    """Only a request with a Bearer key of a tenant is let in."""
    inner = Inner()
    status, headers, _ = await call(inner, key=key)
    assert (status, headers[b"www-authenticate"], inner.scopes) == (401, b"Bearer", [])


@pytest.mark.parametrize("route", [CHAT, ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/health")])
async def test_nothing_answers_before_the_plugin_is_there(route: tuple[str, str]) -> None:
    """Without a `Serving` (the plugin may have failed to load) every route is 503, health included."""
    inner = Inner()
    status, headers, _ = await call(inner, route, ready=None)
    assert (status, headers[b"retry-after"], inner.scopes) == (503, b"1", [])


async def test_a_tenant_that_is_served_does_not_wait_for_the_others() -> None:
    """Until every tenant is decided health is 503, so that a load balancer waits; the routes answer for each tenant."""
    inner = Inner()
    status, headers, _ = await call(inner, ("GET", "/health"), ready=False)
    assert (status, headers[b"retry-after"], inner.scopes) == (503, b"1", [])
    assert (await call(inner, ready=False))[0] == 200


@pytest.mark.parametrize("route", [CHAT, ("GET", "/v1/models"), ("GET", "/health")])
async def test_a_server_that_is_stopping_answers_nothing_new(route: tuple[str, str]) -> None:
    """503 with Retry-After, health included, so that load balancers and clients go to another server."""
    inner = Inner()
    status, headers, body = await call(inner, route, draining=True)
    assert (status, headers[b"retry-after"], inner.scopes) == (503, b"1", [])
    assert "stopping" in json.loads(body)["error"]["message"]


async def test_health_needs_no_key() -> None:
    """A health probe has no key."""
    status, _, _ = await call(Inner(), ("GET", "/health"), key=None)
    assert status == 200


async def test_the_tenant_of_the_key_reaches_the_route() -> None:
    """The route finds tenant and key in the request state, whatever headers the client adds."""
    inner = Inner()
    await call(inner, key="telecom-key", headers=((b"x-tenant", b"bank"),))
    context = inner.scopes[0]["state"]["nightschool_request"]
    assert (context.tenant, context.authorization) == ("telecom", "Bearer telecom-key")


async def test_headers_that_steer_the_engine_are_stripped() -> None:
    """vLLM would prefer these four to the body; they never reach it, however they are spelled."""
    inner = Inner()
    spoofed = ((b"X-Request-Id", b"1"), (b"x-vllm-priority", b"-9"), (b"X-SESSION-ID", b"s"), (b"x-data-parallel-rank", b"0"))
    await call(inner, headers=(*spoofed, (b"traceparent", b"kept")))
    assert [name for name, _ in inner.scopes[0]["headers"]] == [b"authorization", b"traceparent"]


async def test_the_body_arrives_whole() -> None:
    """A body in several chunks is replayed unchanged."""
    _, _, body = await call(Inner(), body=(b'{"a"', b":1", b"}"))
    assert body == b'{"a":1}'


@pytest.mark.parametrize("headers", [(), ((b"content-length", b"1001"),), ((b"content-length", b"-1"),)])
async def test_a_body_over_the_limit_is_refused(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """Too large is 413, whether by the declared length or by the bytes that come."""
    inner = Inner()
    status, _, _ = await call(inner, body=(b"x" * 600, b"x" * 600), headers=headers)
    assert (status, inner.scopes) == (413, [])


async def test_a_body_at_the_limit_is_accepted() -> None:
    """The limit itself is allowed."""
    status, _, _ = await call(Inner(), body=(b"x" * 1000,))
    assert status == 200


async def test_a_client_that_goes_away_while_sending_never_reaches_vllm() -> None:
    """A body that is not complete is not a request."""
    inner = Inner()
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    serving = SimpleNamespace(ready=True, draining=False, in_progress=0)
    app = SimpleNamespace(state=SimpleNamespace(nightschool_serving=serving))
    headers = [(b"authorization", b"Bearer bank-key")]
    scope = {"type": "http", "method": "POST", "path": CHAT[1], "headers": headers, "app": app}
    await TenantGuard(inner, KEYS)(scope, receive, send)
    assert (sent, inner.scopes, serving.in_progress) == ([], [], 0)


@pytest.mark.parametrize("draining", [True, False])
async def test_a_half_sent_body_at_the_end_of_a_shutdown_is_refused(draining: bool) -> None:
    """uvicorn cancels what is left when it waits no longer. Then that is an answer; at any other time it stays what it is."""
    inner = Inner()
    sent: list[Any] = []
    waiting = asyncio.Event()
    serving = SimpleNamespace(ready=True, draining=False, in_progress=0)

    async def receive() -> Any:
        waiting.set()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    app = SimpleNamespace(state=SimpleNamespace(nightschool_serving=serving))
    headers = [(b"authorization", b"Bearer bank-key")]
    scope = {"type": "http", "method": "POST", "path": CHAT[1], "headers": headers, "app": app}
    request = asyncio.create_task(TenantGuard(inner, KEYS)(scope, receive, send))
    await waiting.wait()
    serving.draining = draining
    request.cancel()
    with contextlib.nullcontext() if draining else pytest.raises(asyncio.CancelledError):
        await request
    assert [message.get("status") for message in sent] == ([503, None] if draining else [])
    assert (inner.scopes, serving.in_progress) == ([], 0)


async def test_the_release_goes_out_as_a_header() -> None:
    """The release that the route names is in the response, beside the route's own headers."""
    inner = Inner()
    inner.release = "ab" * 32
    _, headers, _ = await call(inner)
    assert (headers[b"x-nightschool-release"], headers[b"x-inner"]) == (b"ab" * 32, b"1")


@pytest.mark.parametrize("error", [None, RuntimeError("broken")])
async def test_what_hangs_on_a_request_is_closed_however_it_ends(error: Exception | None) -> None:
    """Leases and spans are closed once after an answer and once after an error."""
    closed: list[tuple[int | None, bool]] = []
    inner = Inner()
    inner.error = error

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context = scope["state"]["nightschool_request"]
        context.closing.callback(lambda: closed.append((context.status, context.is_complete)))
        await inner(scope, receive, send)

    guarded = Inner()
    guarded.__class__ = type("Wrapped", (Inner,), {"__call__": lambda self, *a: app(*a)})
    if error:
        with pytest.raises(RuntimeError):
            await call(guarded)
    else:
        await call(guarded)
    assert closed == [(None, False) if error else (200, True)]


async def test_a_websocket_is_closed_and_lifespan_passes() -> None:
    """There is no inference over websockets; the server's own start and stop go through."""
    inner = Inner()
    sent: list[Any] = []

    async def receive() -> Any:
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    guard = TenantGuard(inner, KEYS)
    await guard({"type": "websocket", "path": "/v1/realtime"}, receive, send)
    await guard({"type": "lifespan"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert [scope["type"] for scope in inner.scopes] == ["lifespan"]
