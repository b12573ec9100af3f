"""A request on its way in: what the collector needs to know of it, whatever protocol carries it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO

from starlette.requests import ClientDisconnect, Request

from nightschool_collector.request.admission import Hold, Traffic
from nightschool_collector.request.body_count import BodyCount
from nightschool_collector.request.refusal import BAD_REQUEST, UNAVAILABLE, RefusedError, too_large

RECEIVE_TIMEOUT_S = 30.0  # three times as long as the official exporters wait for an answer


class Incoming(ABC):
    """One request before its body is read. Each method may raise `RefusedError`."""

    needs_key = True
    """Whether it must carry a tenant's API key."""
    address = ""
    """Of a request without a key: where it comes from."""

    def __init__(self, signal: str, traffic: Traffic, authorization: str | None, *, limit: int) -> None:
        self.signal, self.traffic, self.authorization, self.limit = signal, traffic, authorization, limit
        """`signal` is what it is counted under; its body may have `limit` bytes, as sent and as decompressed."""

    def check(self) -> None:  # noqa: B027 - most requests need no further check
        """Whatever else must hold before a byte is read."""

    @abstractmethod
    def expected_bytes(self) -> int:
        """How many bytes to reserve before the body is read; 0 if nothing is known."""

    @abstractmethod
    async def read(self, hold: Hold) -> bytes:
        """The body as sent. Each length goes to `hold`, which may refuse it, before those bytes are kept."""

    @abstractmethod
    def encoding(self, body: bytes) -> str | None:
        """The Content-Encoding of `body`; None if it is not compressed."""

    @abstractmethod
    def count(self) -> BodyCount:
        """A new count of what the body holds."""


class HttpRequest(Incoming):
    """A request over HTTP/1.1."""

    def __init__(self, request: Request, signal: str, traffic: Traffic, *, limit: int, count: Callable[[], BodyCount]) -> None:
        super().__init__(signal, traffic, request.headers.get("authorization"), limit=limit)
        self._request, self._count = request, count

    def expected_bytes(self) -> int:
        """The length that the client announces, 0 if it does not; one over the limit is refused."""
        announced = self._request.headers.get("content-length", "")
        declared = int(announced) if announced.isascii() and announced.isdigit() else 0
        if declared > self.limit:
            raise too_large(f"{declared} bytes", self.limit)
        return declared

    async def read(self, hold: Hold) -> bytes:
        try:
            return await self._read_chunks(hold)
        except ClientDisconnect:
            raise RefusedError(BAD_REQUEST, "the connection closed before the body was complete") from None

    def encoding(self, body: bytes) -> str | None:
        return self._request.headers.get("content-encoding")

    def count(self) -> BodyCount:
        return self._count()

    async def _read_chunks(self, hold: Hold) -> bytes:
        body, size = BytesIO(), 0
        async with receive_timeout():
            async for chunk in self._request.stream():
                size += len(chunk)
                if size > self.limit:
                    raise too_large(f"more than {self.limit} bytes", self.limit)
                hold(size)
                body.write(chunk)
        return body.getvalue()


@asynccontextmanager
async def receive_timeout() -> AsyncIterator[None]:
    """Refuse a client that is still sending after `RECEIVE_TIMEOUT_S`: it occupies memory that others need."""
    try:
        async with asyncio.timeout(RECEIVE_TIMEOUT_S):
            yield
    except TimeoutError:
        message = f"the body was not complete after {RECEIVE_TIMEOUT_S:g} s: try again, with smaller batches"
        raise RefusedError(UNAVAILABLE, message, reason="slow") from None
