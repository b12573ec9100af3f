"""The tenant guard: pure ASGI, outermost in vLLM's server. Decides which requests are let in and which routes exist.

Everything is denied unless listed. vLLM starts with its own routes when an endpoint plugin cannot be loaded, so no
inference route answers before our plugin has put its `Serving` into the app's state.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nightschool.config.reader import load_config
from nightschool.keys import KeyRing
from nightschool.semconv import RELEASE_RESPONSE_HEADER
from nightschool_serving.front.bodies import Body, BodyBudget, BodyLimits, BodyRefused, limits_for
from nightschool_serving.front.configured_keys import CONFIG_VARIABLE, follow_keys

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = ("GET", "/health")
ROUTES = frozenset(
    {
        HEALTH,
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/nightschool/v1/releases"),
    }
)
# vLLM prefers each of these headers to the body: a client could choose another client's request id, or a priority.
STRIPPED_HEADERS = frozenset({b"x-request-id", b"x-vllm-priority", b"x-session-id", b"x-data-parallel-rank"})

DRAINING = "this server is stopping and answers no new request, try another"
_LATER = ((b"retry-after", b"1"),)


@dataclass(slots=True)
class RequestContext:
    """What the guard knows of a request and what the routes add to it; `request.state.nightschool_request` in a route."""

    tenant: str
    authorization: str
    """The client's own header, so that spans are sent to the collector with the client's key. Kept in memory only."""
    received_ns: int
    """Nanoseconds since 1970."""
    release: str | None = None
    """Set by the route; sent as a response header, also on errors."""
    status: int | None = None
    """HTTP status; None before the response has begun."""
    is_complete: bool = False
    """Whether the whole response was sent."""
    closing: ExitStack = field(default_factory=ExitStack)
    """What to do when the response is over, however it ended."""


class TenantGuard:
    """`--middleware nightschool_serving.front.guard.TenantGuard`."""

    def __init__(self, app: App, keys: KeyRing | None = None, limits: BodyLimits | None = None) -> None:
        self._app = app
        if keys is None:
            path = Path(os.environ[CONFIG_VARIABLE])
            keys, limits = follow_keys(path), limits_for(load_config(path).serving.max_model_len)
        self._keys = keys
        self._bodies = BodyBudget(limits or BodyLimits())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = (scope["method"], scope["path"])
        authorization = _header(scope, b"authorization")
        tenant = self._keys.tenant_of(authorization)
        if route not in ROUTES:
            await _refuse(send, 404, f"{route[0]} {route[1]} does not exist here")
        elif route != HEALTH and (tenant is None or authorization is None):
            await _refuse(send, 401, "send the tenant's key as 'Authorization: Bearer KEY'", (b"www-authenticate", b"Bearer"))
        elif (serving := _serving(scope)) is None:
            await _refuse(send, 503, "not ready: this server's plugin is not loaded", *_LATER)
        elif serving.draining:
            await _refuse(send, 503, DRAINING, *_LATER)
        elif route == HEALTH:
            # The server's own state. What one tenant is served, or why it is not, is in its answers.
            if serving.ready:
                await self._app(scope, receive, send)
            else:
                await _refuse(send, 503, "not ready: the tenants' releases are being loaded", *_LATER)
        else:
            assert tenant is not None
            assert authorization is not None
            context = RequestContext(tenant, authorization, time.time_ns())
            with context.closing:
                await self._admit(context, serving, scope, receive, send)

    async def _admit(self, context: RequestContext, serving: Any, scope: Scope, receive: Receive, send: Send) -> None:
        body = Body(self._bodies, context.tenant)
        context.closing.callback(body.close)
        try:
            content = await body.read(_header(scope, b"content-length"), receive)
        except ConnectionAbortedError:
            return
        except asyncio.CancelledError:
            # At the end of a shutdown uvicorn waits no longer; whose body never came whole is told so, without a traceback.
            if not serving.draining:
                raise
            await _refuse(send, 503, DRAINING, (b"connection", b"close"), *_LATER)
            return
        except BodyRefused as refused:
            # The rest of the body is not read, so the connection cannot be used again.
            later = _LATER if refused.status == 503 else ()
            await _refuse(send, refused.status, refused.message, (b"connection", b"close"), *later)
            return
        # Counted first and then checked: the thread that ends the server sets the one and then looks at the other.
        serving.in_progress += 1
        context.closing.callback(partial(_is_answered, serving))
        if serving.draining:
            await _refuse(send, 503, DRAINING, *_LATER)
            return
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() not in STRIPPED_HEADERS]
        scope.setdefault("state", {})["nightschool_request"] = context
        pending = [{"type": "http.request", "body": content, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                if context.release is not None:
                    release = (RELEASE_RESPONSE_HEADER.encode(), context.release.encode())
                    message["headers"] = [*message.get("headers", ()), release]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                context.is_complete = True

        await self._app(scope, replay, observe)


def _is_answered(serving: Any) -> None:
    serving.in_progress -= 1


def _serving(scope: Scope) -> Any:
    """The `Serving` of this app; None if our endpoint plugin is not loaded, and vLLM's own routes would answer."""
    return getattr(scope["app"].state, "nightschool_serving", None) if "app" in scope else None


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def _refuse(send: Send, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
    """An error body in the shape that OpenAI clients parse."""
    error = {"message": message, "type": _TYPES[status], "param": None, "code": status}
    body = json.dumps({"error": error}).encode()
    fixed = ((b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


_TYPES = {
    401: "AuthenticationError",
    404: "NotFoundError",
    408: "RequestTimeout",
    413: "RequestTooLarge",
    503: "ServiceUnavailable",
}
