"""Limits on connections, of a real uvicorn server on real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from nightschool.connections import ConnectionLimits, limited_http

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LONG = 3600.0


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once; a POST when its body is complete."""
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


Connect = Callable[[], socket.socket]


@pytest.fixture
def serve() -> Iterator[Callable[[ConnectionLimits], Connect]]:
    """Starts a server with these limits; the function it gives opens a connection."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []
    opened: list[socket.socket] = []

    def start(limits: ConnectionLimits) -> Connect:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=limited_http(limits), log_level="warning", lifespan="off", timeout_keep_alive=3600)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        running.append((server, thread))
        thread.start()

        def connect() -> socket.socket:
            connection = socket.create_connection(listener.getsockname(), timeout=30)
            opened.append(connection)
            return connection

        return connect

    yield start
    for connection in opened:
        connection.close()
    for server, thread in running:
        server.should_exit = True
        thread.join()


def begin(connection: socket.socket) -> None:
    """A request whose body's last byte is missing; returns when the application is reading it."""
    connection.sendall(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 100")
    connection.sendall(b"a")


def ask(connection: socket.socket, request: bytes = REQUEST) -> bytes:
    """The first line of the answer."""
    connection.sendall(request)
    return connection.recv(4096).partition(b"\r\n")[0]


def test_a_silent_connection_is_closed(serve: Any) -> None:
    """Who says nothing, at the start or after a request, is not kept; who asked in time got an answer."""
    connect = serve(ConnectionLimits(head_seconds=0.3))
    silent, half = connect(), connect()
    assert ask(half) == b"HTTP/1.1 200 OK"
    half.sendall(REQUEST[:10])
    assert silent.recv(100) == b""
    assert half.recv(4096).startswith(b"HTTP/1.1 408")
    assert half.recv(100) == b""


def test_one_byte_at_a_time_buys_no_time(serve: Any) -> None:
    """The limit is on the whole head, not on the pause between two bytes."""
    connect = serve(ConnectionLimits(head_seconds=0.5))
    slow = connect()
    slow.settimeout(0.05)
    answer = b""
    for number in range(600):
        try:
            slow.sendall(REQUEST[number : number + 1] if number < 20 else b"a")
            answer += slow.recv(4096)
        except TimeoutError:
            continue
        except OSError:
            break
        if answer:
            break
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_head_without_end_is_refused(serve: Any) -> None:
    """Headers are bounded in bytes; a body behind a complete head is not counted with them."""
    connect = serve(ConnectionLimits(head_seconds=LONG, head_bytes=2000))
    endless, body = connect(), connect()
    assert ask(endless, REQUEST[:-2] + b"x: " + b"a" * 3000).startswith(b"HTTP/1.1 431")
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n"
    assert ask(body, head + b"a" * 9000) == b"HTTP/1.1 200 OK"
    assert ask(body) == b"HTTP/1.1 200 OK"


def test_at_the_limit_the_longest_waiting_makes_room(serve: Any) -> None:
    """Any number of silent connections shut nobody out, and a request in progress is never closed for a newcomer."""
    connect = serve(ConnectionLimits(head_seconds=LONG, connections=3))
    busy = connect()
    begin(busy)
    silent = [connect() for _ in range(6)]
    assert ask(connect()) == b"HTTP/1.1 200 OK"
    for connection in silent[:5]:
        with pytest.raises((ConnectionResetError, AssertionError)):
            assert connection.recv(100), "closed without an answer"
    assert ask(busy, b"b") == b"HTTP/1.1 200 OK"


def test_with_every_connection_busy_a_newcomer_is_told(serve: Any) -> None:
    """503 with Retry-After, and not a connection that hangs."""
    connect = serve(ConnectionLimits(head_seconds=LONG, connections=2))
    busy = [connect() for _ in range(2)]
    for connection in busy:
        begin(connection)
    refused = connect().recv(4096)
    assert refused.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in refused
    assert [ask(connection, b"b") for connection in busy] == [b"HTTP/1.1 200 OK"] * 2


def test_requests_sent_ahead_are_all_answered(serve: Any) -> None:
    """Pipelined requests count as in progress; the connection is waiting again after the last."""
    connect = serve(ConnectionLimits(head_seconds=0.5))
    connection, answer = connect(), b""
    connection.sendall(REQUEST * 3)
    while answer.count(b"HTTP/1.1 200 OK") < 3:
        answer += connection.recv(4096)
    connection.sendall(b"GET")
    assert connection.recv(4096).startswith(b"HTTP/1.1 408")
