"""The end of a server: vLLM's own HTTP server and shutdown, our guard and draining, and an engine without a model."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

# The engine fails as vLLM's does once it is stopped: a new request gets 500, a running stream ends without an error.
SERVER = """
import asyncio, socket, sys
from pathlib import Path
from types import SimpleNamespace

import uvloop
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from vllm.entrypoints.launchers.launcher import serve_http

from nightschool.connections import ConnectionLimits, limited_http
from nightschool.keys import KeyRing, hash_key
from nightschool_serving.draining import drain_before_shutdown
from nightschool_serving.front.guard import TenantGuard

class Engine:
    vllm_config = SimpleNamespace(shutdown_timeout=60)
    errored, is_running, stopped = False, True, False

    def shutdown(self, timeout=None):
        self.stopped = True

engine, serving, app = Engine(), SimpleNamespace(ready=True, draining=False, in_progress=0), FastAPI()

@app.get("/health")
async def health():
    return {}

@app.post("/v1/chat/completions")
async def chat():
    if engine.stopped:
        raise RuntimeError("the engine is stopped")
    async def pieces():
        for _ in range(40):
            if engine.stopped:
                return
            yield b"x"
            await asyncio.sleep(0.05)
    return StreamingResponse(pieces())

app.state.engine_client, app.state.nightschool_serving = engine, serving
drain_before_shutdown(engine, serving)
app.add_middleware(TenantGuard, keys=KeyRing({"bank": [hash_key("k")]}))

async def main():
    sock = socket.create_server(("127.0.0.1", 0))
    Path(sys.argv[1]).write_text(str(sock.getsockname()[1]))
    options = {"http": limited_http(ConnectionLimits()), "timeout_graceful_shutdown": 10}
    await (await serve_http(app, sock, host="127.0.0.1", port=sock.getsockname()[1], log_level="warning", **options))

uvloop.run(main())
"""


Server = tuple["subprocess.Popen[bytes]", int, Path]
Connect = Callable[[], http.client.HTTPConnection]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The process, its port, and its log."""
    log, found = tmp_path / "log", tmp_path / "port"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", SERVER, str(found)], stdout=output, stderr=subprocess.STDOUT)
    while not (found.exists() and found.read_text()):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield process, int(found.read_text()), log
    process.kill()
    process.wait()


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    """Opens connections and closes them in the end."""
    with contextlib.ExitStack() as opened:

        def open_one() -> http.client.HTTPConnection:
            return opened.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", server[1], timeout=60)))

        yield open_one


def ask(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    connection.request("POST", "/v1/chat/completions", b"{}", {"Authorization": "Bearer k"})
    return connection.getresponse()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_was_let_in_is_answered_and_nobody_else_is(server: Server, connect: Connect, number: signal.Signals) -> None:
    """No answer is cut, nothing new gets a 500 or an empty 200, and a half-sent request does not keep the process."""
    process, port, log = server
    streams = [ask(connect()) for _ in range(4)]
    assert [stream.read(1) for stream in streams] == [b"x"] * 4
    with socket.create_connection(("127.0.0.1", port), timeout=60) as half:
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: 9\r\n\r\n{")
        process.send_signal(number)
        late: list[tuple[int, str | None, bytes]] = []
        while True:
            try:
                answer = ask(connect())
                late.append((answer.status, answer.headers["retry-after"], answer.read()))
            except (OSError, http.client.HTTPException):
                break  # it does not listen any more
            time.sleep(0.02)
        assert [stream.read() for stream in streams] == [b"x" * 39] * 4
        assert process.wait(60) == 0
    # The first may have come before the signal.
    refused = [(status, retry_after) for status, retry_after, body in late if (status, body) != (200, b"x" * 40)]
    assert set(refused) == {(503, "1")}
    assert len(refused) >= len(late) - 1
    assert "Traceback" not in log.read_text()
