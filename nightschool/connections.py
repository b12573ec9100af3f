"""Limits on connections that uvicorn lacks: time and size of a request's head, and how many connections there may be.

A client that connects and says nothing, or says it one byte a minute, costs a socket and some memory for as long as it
likes. Here a head that is not complete in time ends its connection. At the limit of connections one that waits for a
head makes room: of the address with most such connections, the one that has waited longest. So whoever opens many
closes their own. A connection whose request is being answered is never closed.

Used by the HTTP servers of the collector and of serving, which bring uvicorn; nothing else imports this.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a server allows its connections."""

    head_seconds: float = 10.0
    """From connecting, or from the first byte of a further request, to the end of the request's headers."""
    head_bytes: int = 64 << 10
    """Request line and headers; clients that send tracing and proxy headers stay below 8 KiB."""
    connections: int = 2048
    """At most so many at a time. One that waits holds about 20 KB, so all of them 40 MiB."""


def limited_http(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """The class to give to `uvicorn.Config(http=...)` of one server."""
    return type("LimitedHttp", (_LimitedHttp,), {"limits": limits, "waiting": {}})


class _LimitedHttp(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 over httptools, with limits; a subclass for each server holds its connections."""

    limits: ClassVar[ConnectionLimits]
    waiting: ClassVar[dict[str, dict[_LimitedHttp, None]]]
    """The connections without a request in progress by their address, longest waiting first."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._is_in_body = False
        self._address = ""

    @property
    def _is_waiting(self) -> bool:
        return self in self.waiting.get(self._address, {})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._start_waiting()
        self._start_head_timer()
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_waiting and self._head_timer is None:
            self._start_head_timer()
        if not self._is_in_body:
            self._head_bytes += len(data)
        super().data_received(data)
        # After the parser has seen it: the end of the head, and much of a body, may be in the same piece.
        if not self._is_in_body and self._is_waiting and self._head_bytes > self.limits.head_bytes:
            self._refuse(b"431 Request Header Fields Too Large", f"the headers have over {self.limits.head_bytes} bytes")

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._is_in_body, self._head_bytes = True, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A further request that the client has sent ahead is in progress already.
        if not self.transport.is_closing() and self.cycle.response_complete:
            self._start_waiting()

    def _start_waiting(self) -> None:
        self.waiting.setdefault(self._address, {})[self] = None

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._is_waiting:
            del self.waiting[self._address][self]
            if not self.waiting[self._address]:
                del self.waiting[self._address]
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self._head_bytes and not self._is_in_body:
            self._refuse(b"408 Request Timeout", f"the headers were not complete after {self.limits.head_seconds:g} s")
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        """Close the connection that has waited longest, of the address that has most of those that wait."""
        crowded = max(self.waiting, key=lambda address: len(self.waiting[address]))
        oldest = next(iter(self.waiting[crowded]))
        if oldest is self:
            self._refuse(b"503 Service Unavailable", "all connections are in use, try again", b"retry-after: 1\r\n")
        else:
            oldest._stop_waiting()
            oldest.transport.abort()

    def _refuse(self, status: bytes, message: str, headers: bytes = b"") -> None:
        """Answer without the application, and close."""
        self._stop_waiting()
        body = message.encode()
        head = b"HTTP/1.1 " + status + b"\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n" + headers
        self.transport.write(head + b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body)
        self.transport.close()
