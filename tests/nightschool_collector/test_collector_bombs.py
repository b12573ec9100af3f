"""Small requests that hold very much: refused or stored for little memory, seen in a real collector process."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nightschool.keys import hash_key
from nightschool.otlp.varint import encode_varint

MIB = 1 << 20
PROTOBUF, JSON = "application/x-protobuf", "application/json"
# What the process may take beside what it takes when it starts, each bomb being at the limits of what is read of it:
# a body of 16 MiB twice, the objects made of a piece of it, and what Python's and SQLite's memory keeps.
MOST_EXTRA_BYTES = 160 * MIB
# One mebibyte of empty spans, 1,049 bytes as sent, once took 433 MiB: it must be refused before anything is built of it.
FIRST, FIRST_EXTRA_BYTES = "empty spans", 12 * MIB
EVALUATION = b"\x62\x18gen_ai.evaluation.result"


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + encode_varint(len(content)) + content


def one_scope(items: bytes) -> bytes:
    """A request of items under one scope and resource."""
    return field(1, field(2, items))


def nested(depth: int) -> str:
    return '{"resourceSpans":[{"resource":' + '{"a":' * depth + "1" + "}" * depth + "}]}"


SPAN = field(1, b"\1" * 16) + field(2, b"\2" * 8)
BOMBS: dict[str, tuple[str, str, bytes, int]] = {
    FIRST: ("/v1/traces", PROTOBUF, one_scope(field(2, b"") * (MIB // 2)), 413),
    "empty spans, 16 MiB": ("/v1/traces", PROTOBUF, one_scope(field(2, b"") * (8 * MIB - 16)), 413),
    "empty resources": ("/v1/traces", PROTOBUF, field(1, b"") * (8 * MIB), 413),
    "empty attributes": ("/v1/traces", PROTOBUF, one_scope(field(2, SPAN + field(9, b"") * (8 * MIB - 64))), 413),
    "empty values": (
        "/v1/traces",
        PROTOBUF,
        one_scope(field(2, SPAN + field(9, field(2, field(5, field(1, b"") * (7 * MIB)))))),
        413,
    ),
    "empty log records": ("/v1/logs", PROTOBUF, one_scope(field(2, b"") * (8 * MIB - 16)), 413),
    "useless outcomes": ("/v1/logs", PROTOBUF, one_scope(field(2, EVALUATION) * 60_000), 200),
    "a large resource": (
        "/v1/traces",
        PROTOBUF,
        field(
            1,
            field(1, field(1, field(1, b"x" * MIB)))
            + field(2, b"".join(field(2, field(1, n.to_bytes(16, "big")) + field(2, b"\2" * 8)) for n in range(1, 50_000))),
        ),
        413,
    ),
    "JSON, empty spans": (
        "/v1/traces",
        JSON,
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * (5 * MIB) + b"{}]}]}]}",
        413,
    ),
    "JSON, few enough spans": (
        "/v1/traces",
        JSON,
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 500_000 + b"{}]}]}]}",
        413,
    ),
    "JSON, lists in lists": ("/v1/traces", JSON, b"[" * (15 * MIB), 413),
    "JSON, nested": ("/v1/traces", JSON, nested(100_000).encode(), 400),
    "an outcome batch": ("/v1/outcomes", JSON, b'{"outcomes":[' + b"{}," * (5 * MIB) + b"{}]}", 413),
    "an outcome of lists": ("/v1/outcomes", JSON, b'{"outcomes":' + b"[" * (10 * MIB), 413),
}


@pytest.fixture
def config(tmp_path: Path, unused_port: int) -> Path:
    path = tmp_path / "nightschool.toml"
    path.write_text(
        f'[stream]\nurl = "sqlite:var/stream.db"\n[collector]\nport = {unused_port}\nmax_body_mib = 16\n'
        f'[tenants.acme]\nkey_sha256 = ["{hash_key("k")}"]\n'
    )
    return path


@pytest.fixture
def collector_pid(config: Path) -> Iterator[int]:
    """A collector that is ready."""
    command = [sys.executable, "-m", "nightschool_collector", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("collecting on ")
        yield process.pid
        process.kill()


def peak_bytes(pid: int) -> int:
    """The most memory that the process has had, protobuf's and SQLite's too, which no Python tool sees."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("the peak of another process's memory is read from /proc")
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def test_bombs_cost_little_memory(collector_pid: int, unused_port: int) -> None:
    """Whatever requests of a few KB expand to, the collector's whole process stays small, and goes on."""
    before = peak_bytes(collector_pid)
    with httpx.Client(base_url=f"http://127.0.0.1:{unused_port}", timeout=60) as client:
        for name, (path, form, body, status) in BOMBS.items():
            headers = {"content-type": form, "content-encoding": "gzip", "authorization": "Bearer k"}
            answer = client.post(path, content=gzip.compress(body), headers=headers)
            extra = peak_bytes(collector_pid) - before
            assert answer.status_code == status, (name, answer.text)
            assert extra < (FIRST_EXTRA_BYTES if name == FIRST else MOST_EXTRA_BYTES), f"{name}: {extra / MIB:.1f} MiB"
        assert client.get("/readyz").status_code == 200
