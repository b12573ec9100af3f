"""Request bodies: the time for one, and the bytes that are held for a tenant and in all."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from nightschool.keys import KeyRing, hash_key
from nightschool_serving.front.bodies import BodyLimits, limits_for
from nightschool_serving.front.guard import TenantGuard

KEYS = KeyRing({name: [hash_key(name)] for name in ("bank", "telecom", "third")})
LIMITS = BodyLimits(body_bytes=1000, seconds=3600.0, tenant_bytes=1500, total_bytes=2000)


class Server:
    """A guard in front of an application that answers when it is told to."""

    def __init__(self, limits: BodyLimits) -> None:
        self.serving = SimpleNamespace(ready=True, draining=False, in_progress=0)
        self.answering = asyncio.Event()
        self.answering.set()
        self.guard = TenantGuard(self._app, KEYS, limits)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await self.answering.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})

    def post(self, tenant: str) -> Client:
        return Client(self, tenant)


class Client:
    """One request, sent piece by piece."""

    def __init__(self, server: Server, tenant: str) -> None:
        self._pieces: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"authorization", f"Bearer {tenant}".encode())],
            "app": SimpleNamespace(state=SimpleNamespace(nightschool_serving=server.serving)),
        }
        self._task = asyncio.create_task(server.guard(scope, self._pieces.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def write(self, num_bytes: int, *, last: bool = False) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": b"x" * num_bytes, "more_body": not last})

    def leave(self) -> None:
        self._pieces.put_nowait({"type": "http.disconnect"})

    async def settle(self) -> None:
        """Let the server take what was written."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def status(self) -> int:
        async with asyncio.timeout(30):
            await self._task
        return int(self.sent[0]["status"]) if self.sent else 0

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


async def test_a_body_that_is_not_complete_in_time_is_refused() -> None:
    """408, and the connection is closed: what is half sent is not held for ever."""
    client = Server(replace(LIMITS, seconds=0.05)).post("bank")
    client.write(10)
    assert await client.status() == 408
    assert client.headers[b"connection"] == b"close"


async def test_half_sent_bodies_of_one_tenant_are_bounded_and_leave_others_alone() -> None:
    """Over the tenant's share it gets 503 with Retry-After; another tenant's request is answered."""
    server = Server(LIMITS)
    held = server.post("bank")
    held.write(900)
    await held.settle()
    more = server.post("bank")
    more.write(601)
    assert await more.status() == 503
    assert more.headers[b"retry-after"] == b"1"
    other = server.post("telecom")
    other.write(900, last=True)
    assert await other.status() == 200
    held.write(100, last=True)
    assert await held.status() == 200


def test_the_limit_of_a_body_follows_the_longest_prompt() -> None:
    """A prompt of every token in its longest spelling fits; the limit has an end of its own."""
    assert limits_for(2048).body_bytes == (1 << 20) + (128 << 10)
    assert limits_for(1 << 20).body_bytes == 16 << 20
    assert limits_for(2048).seconds == BodyLimits().seconds


async def test_all_tenants_together_are_bounded() -> None:
    """Many tenants that each stay within their share do not fill the memory either."""
    server = Server(LIMITS)
    held = [server.post(tenant) for tenant in ("bank", "telecom")]
    for client in held:
        client.write(900)
        await client.settle()
    third = server.post("third")
    third.write(201)
    assert await third.status() == 503
    held[0].leave()
    assert await held[0].status() == 0
    again = server.post("third")
    again.write(900, last=True)
    assert await again.status() == 200


async def test_a_body_is_counted_until_its_answer_is_over() -> None:
    """The server holds it so long; after that its room is free again."""
    server = Server(LIMITS)
    server.answering.clear()
    first = server.post("bank")
    first.write(1000, last=True)
    await first.settle()
    assert server.serving.in_progress == 1
    second = server.post("bank")
    second.write(600)
    assert await second.status() == 503
    server.answering.set()
    assert await first.status() == 200
    assert server.serving.in_progress == 0
    third = server.post("bank")
    third.write(1000, last=True)
    assert await third.status() == 200


async def test_a_body_that_ends_while_the_server_is_stopping_is_not_answered() -> None:
    """It began before, but nothing of it has reached the engine: another server can take it."""
    server = Server(LIMITS)
    client = server.post("bank")
    client.write(10)
    await client.settle()
    server.serving.draining = True
    client.write(10, last=True)
    assert await client.status() == 503
