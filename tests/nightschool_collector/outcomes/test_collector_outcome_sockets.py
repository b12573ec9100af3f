"""Pages are answered while somebody without a token keeps connections open and sends nothing; with real sockets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from nightschool.keys import hash_key
from nightschool.outcomes.tokens import OutcomeKey, TokenClaims, mint_token

SECRET = "s" * 40
BODY_BYTES = 256 << 10  # the largest body of a page
OUTCOME = {"target": {"response_id": "r"}, "name": "thumb", "value": True, "source": {"kind": "code"}}


@pytest.fixture
def collector_port(tmp_path: Path, unused_port: int) -> Iterator[int]:
    """A collector process with the least room for outcomes that is allowed."""
    (tmp_path / "k1").write_text(SECRET)
    (tmp_path / "nightschool.toml").write_text(
        '[stream]\nurl = "sqlite:stream.db"\n'
        f"[collector]\nport = {unused_port}\nmax_body_mib = 1\nmax_in_flight_outcomes_mib = 1\nbrowser_writes_per_minute = 1000\n"
        f'[tenants.acme]\nkey_sha256 = ["{hash_key("k")}"]\noutcome_keys = ["k1=file:k1"]\n'
    )
    command = [sys.executable, "-m", "nightschool_collector", "--config", str(tmp_path / "nightschool.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("collecting on ")
        yield unused_port
        process.kill()


def half_sent(port: int, *, num_bytes: int) -> socket.socket:
    """A connection with a request that announces a large body, of which only `num_bytes` come."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST /v1/outcomes/browser HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: {BODY_BYTES}\r\n\r\n"
    connection.sendall(head.encode() + b" " * num_bytes)
    return connection


def status_of(port: int, *, address: str) -> int:
    """The answer to an outcome from a page at a network address."""
    now = int(time.time())
    claims = TokenClaims("acme", "0af7651916cd43dd8448eb211c80319c", ("thumb",), now - 60, now + 3600, f"t-{time.monotonic_ns()}")
    body = {"token": mint_token(OutcomeKey("k1", SECRET.encode()), claims), "name": "thumb", "value": True}
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=30) as client:
        url = f"http://127.0.0.1:{port}/v1/outcomes/browser"
        return client.post(url, content=json.dumps(body), headers={"content-type": "text/plain"}).status_code


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine only on Linux")
@pytest.mark.parametrize("num_bytes", [0, 16_000])
def test_who_sends_nothing_blocks_only_their_own_address(collector_port: int, num_bytes: int) -> None:
    """Half-sent bodies use up what their address may have in flight, and nothing of what pages elsewhere and servers have."""
    with ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(half_sent(collector_port, num_bytes=num_bytes))
        while status_of(collector_port, address="127.0.0.1") != 503:  # until the collector has seen as many as it takes
            time.sleep(0.05)
        assert status_of(collector_port, address="127.0.0.2") == 202
        headers = {"authorization": "Bearer k"}
        answer = httpx.post(f"http://127.0.0.1:{collector_port}/v1/outcomes", json=OUTCOME, headers=headers, timeout=30)
        assert answer.status_code == 202
    while status_of(collector_port, address="127.0.0.1") != 202:
        time.sleep(0.05)
