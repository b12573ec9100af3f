"""Measures what one bad client of `nightschool collect` costs an honest tenant beside it.

`make bench NAME=abuse_collector`. For each case a real collector process is started on SQLite, with two tenants:
`honest` sends 16 spans of 2 KB at a time over one connection, `bad` is a process of its own that does what the case
says, over and over. Then the collector is killed and its stream is read. Each case is one JSON object a line:

`case`                 what the bad client does
`honest_p99_ms_alone`  until a request of `honest` was acknowledged, without the bad client, just before
`honest_p99_ms`        with it
`honest_p99_ratio`     the second divided by the first
`collector_peak_mb`    the largest memory of the collector's process
`failed`               honest requests that were not answered with 200
`acked_lost`           honest requests that were acknowledged and are not in the stream
`seen`                 what the bad client was answered, by status; 0 is a connection that was closed
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as field_of
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import zstandard  # noqa: E402 - run as a script
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: E402

from nightschool import semconv  # noqa: E402
from nightschool.keys import hash_key  # noqa: E402
from nightschool.otlp.varint import encode_varint  # noqa: E402
from nightschool.stream import open_stream  # noqa: E402

MIB = 1 << 20
PROTOBUF, JSON = "application/x-protobuf", "application/json"
_SETTLE_S = 1.0
_MEASURE_S = 4.0
_CONNECTIONS = 4  # of a bad client that sends whole requests
_PAUSE_S = 0.005  # of the honest client between two requests


# --- the bad clients, each a function that runs until its process is ended ----------------------------------------------
@dataclass
class Bad:
    """One bad client."""

    port: int
    begin: Callable[[], None]
    """Called when everything that is sent has been made."""
    seen: Counter[int] = field_of(default_factory=Counter)
    """What it was answered, by status."""


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + encode_varint(len(content)) + content


def one_scope(items: bytes) -> bytes:
    return field(1, field(2, items))


def span(trace: int) -> bytes:
    return field(1, trace.to_bytes(16, "big")) + field(2, b"\2" * 8)


def send_again_and_again(bad: Bad, path: str, form: str, body: bytes, encoding: str = "gzip") -> None:
    """The same request over some connections, each as fast as it is answered."""
    packed = body
    if encoding != "identity":
        packed = gzip.compress(body) if encoding == "gzip" else zstandard.compress(body)
    del body
    headers = {"content-type": form, "content-encoding": encoding, "authorization": "Bearer bad"}

    def send() -> None:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", bad.port, timeout=60)
            with contextlib.suppress(OSError, http.client.HTTPException):
                while True:
                    connection.request("POST", path, packed, headers)
                    response = connection.getresponse()
                    response.read()
                    bad.seen[response.status] += 1
            bad.seen[0] += 1
            connection.close()

    bad.begin()
    threads = [threading.Thread(target=send, daemon=True) for _ in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def protobuf_bomb(bad: Bad) -> None:
    """64 MiB of empty spans."""
    send_again_and_again(bad, "/v1/traces", PROTOBUF, one_scope(field(2, b"") * (32 * MIB - 16)))


def attribute_bomb(bad: Bad) -> None:
    """One span with 32 million empty attributes."""
    send_again_and_again(bad, "/v1/traces", PROTOBUF, one_scope(field(2, span(1) + field(9, b"") * (32 * MIB - 64))))


def most_items(bad: Bad) -> None:
    """65,000 empty spans, as many as are allowed: all are rejected."""
    send_again_and_again(bad, "/v1/traces", PROTOBUF, one_scope(field(2, b"") * 65_000))


def json_bomb(bad: Bad) -> None:
    """330,000 empty spans as JSON, nearly as many values as are allowed."""
    body = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 330_000 + b"{}]}]}]}"
    send_again_and_again(bad, "/v1/traces", JSON, body)


def nested_json(bad: Bad) -> None:
    """64 MiB of opening brackets."""
    send_again_and_again(bad, "/v1/traces", JSON, b"[" * (63 * MIB))


def gzip_bomb(bad: Bad) -> None:
    """1 GiB of zeros in 1 MiB."""
    send_again_and_again(bad, "/v1/traces", PROTOBUF, bytes(1 << 30))


def zstd_bomb(bad: Bad) -> None:
    """1 GiB of zeros in 32 KiB."""
    send_again_and_again(bad, "/v1/traces", PROTOBUF, bytes(1 << 30), "zstd")


def outcome_bomb(bad: Bad) -> None:
    """A batch of 20 million empty outcomes."""
    send_again_and_again(bad, "/v1/outcomes", JSON, b'{"outcomes":[' + b"{}," * (20 * MIB) + b"{}]}")


def many_resources(bad: Bad) -> None:
    """Requests of one span, each under a resource of 1 MiB that never came before."""
    headers = {"content-type": PROTOBUF, "authorization": "Bearer bad"}
    connection, number = http.client.HTTPConnection("127.0.0.1", bad.port, timeout=60), 0
    bad.begin()
    while True:
        number += 1
        shared = field(1, field(1, field(1, b"%016d" % number + b"x" * MIB)))
        connection.request("POST", "/v1/traces", field(1, shared + field(2, field(2, span(number)))), headers)
        response = connection.getresponse()
        response.read()
        bad.seen[response.status] += 1


def hold_open(bad: Bad, num: int, sent: bytes) -> None:
    """Connections that send something and then nothing; one that is closed is opened again a tenth of a second later."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    closed = select.epoll()
    clients: dict[int, socket.socket] = {}
    to_open = deque((0.0,) * num)
    """When each connection that is not open is opened: seconds of the clock."""
    bad.begin()
    while True:
        for number, _ in closed.poll(0.01):
            client = clients.pop(number)
            try:
                answer = client.recv(64)
            except OSError:
                answer = b""
            bad.seen[int(answer[9:12]) if answer else 0] += 1
            client.close()
            to_open.append(time.monotonic() + 0.1)
        while to_open and to_open[0] <= time.monotonic():
            to_open.popleft()
            client = socket.create_connection(("127.0.0.1", bad.port), timeout=60)
            client.setblocking(False)  # a collector that has refused it reads no more of it
            with contextlib.suppress(OSError):
                client.send(sent)
            clients[client.fileno()] = client
            closed.register(client, select.EPOLLIN)


def silent_connections(bad: Bad) -> None:
    """3,000 connections that say nothing, more than the collector holds."""
    hold_open(bad, 3000, b"")


def half_sent_bodies(bad: Bad) -> None:
    """128 requests with a key that send a part of 16 megabytes and no more."""
    head = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\nauthorization: Bearer bad\r\ncontent-length: 16000000\r\n\r\n"
    hold_open(bad, 128, head + b"x" * MIB)


def half_sent_pages(bad: Bad) -> None:
    """256 requests of a page, without a token, that send nothing of the body they announce."""
    head = b"POST /v1/outcomes/browser HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 262144\r\n\r\n"
    hold_open(bad, 256, head)


def full_share(bad: Bad) -> None:
    """Valid requests of 12 MiB, as fast as they are answered, which use up the share of their tenant."""
    spans = b"".join(field(2, span(number) + field(5, b"x" * 48 * 1024)) for number in range(1, 257))
    send_again_and_again(bad, "/v1/traces", PROTOBUF, one_scope(spans), "identity")


CASES: dict[str, Callable[[Bad], None]] = {
    "64 MiB of empty spans": protobuf_bomb,
    "a span of empty attributes": attribute_bomb,
    "as many empty spans as are allowed": most_items,
    "empty spans as JSON": json_bomb,
    "64 MiB of JSON brackets": nested_json,
    "a gzip bomb": gzip_bomb,
    "a zstd bomb": zstd_bomb,
    "a bomb of outcomes": outcome_bomb,
    "many large resources": many_resources,
    "silent connections": silent_connections,
    "half-sent bodies": half_sent_bodies,
    "half-sent bodies of pages": half_sent_pages,
    "a full share": full_share,
}


# --- the honest client and the collector --------------------------------------------------------------------------------
class Honest:
    """Sends requests of one trace each, and knows which were acknowledged."""

    def __init__(self, port: int) -> None:
        self._port, self._num_sent = port, 0
        self.acknowledged: set[bytes] = set()
        self.failed = 0

    def p99_ms(self, num_requests: int, *, seconds: float = 0.0) -> float:
        """Of so many requests, or as many as fit into so many seconds, whichever is more."""
        begun = time.monotonic()
        times: list[float] = []
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while len(times) < num_requests or time.monotonic() - begun < seconds:
            trace, body = self._request()
            began = time.perf_counter()
            try:
                headers = {"content-type": PROTOBUF, "authorization": "Bearer honest"}
                connection.request("POST", "/v1/traces", body, headers)
                response = connection.getresponse()
                response.read()
                if response.status == 200:
                    self.acknowledged.add(trace.hex().encode())
                else:
                    self.failed += 1
            except (OSError, http.client.HTTPException):
                self.failed += 1
                connection.close()
            times.append(1000 * (time.perf_counter() - began))
            time.sleep(_PAUSE_S)
        connection.close()
        return sorted(times)[int(0.99 * (len(times) - 1))]

    def _request(self) -> tuple[bytes, bytes]:
        self._num_sent += 1
        trace = (1 << 100 | self._num_sent).to_bytes(16, "big")
        request = ExportTraceServiceRequest()
        scope = request.resource_spans.add().scope_spans.add()
        for number in range(1, 17):
            one = scope.spans.add(trace_id=trace, span_id=number.to_bytes(8, "big"), name="chat m")
            one.attributes.add(key="gen_ai.input.messages").value.string_value = "Where is my card? " * 110
        return trace, request.SerializeToString()


def run_case(name: str, num_requests: int) -> dict[str, Any]:
    """Measure the honest tenant alone, and then beside the bad client; kill the collector and look into its stream."""
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        config = Path(folder) / "nightschool.toml"
        tenants = "".join(f'[tenants.{tenant}]\nkey_sha256 = ["{hash_key(tenant)}"]\n' for tenant in ("honest", "bad"))
        limits = "browser_writes_per_minute = 1000000\n"  # so that the limit on what is in flight is what is measured
        config.write_text(f'[stream]\nurl = "sqlite:stream.db"\n[collector]\nport = {port}\n{limits}{tenants}')
        command = [sys.executable, "-m", "nightschool_collector", "--config", str(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as collector:
            assert collector.stdout is not None
            assert collector.stdout.readline().startswith("collecting on ")
            honest = Honest(port)
            honest.p99_ms(20)  # warm
            alone_ms = honest.p99_ms(num_requests, seconds=_MEASURE_S)
            bad_command = [sys.executable, __file__, "--bad", name, "--port", str(port)]
            with subprocess.Popen(bad_command, stdout=subprocess.PIPE, text=True) as bad:
                assert bad.stdout is not None
                bad.stdout.readline()
                time.sleep(_SETTLE_S)
                beside_ms = honest.p99_ms(num_requests, seconds=_MEASURE_S)
                bad.send_signal(signal.SIGTERM)
                seen = json.loads(bad.stdout.read())
            peak_mb = _peak_mb(collector.pid)
            collector.kill()
        stored = _stored(Path(folder) / "stream.db")
    return {
        "case": name,
        "honest_p99_ms_alone": round(alone_ms, 1),
        "honest_p99_ms": round(beside_ms, 1),
        "honest_p99_ratio": round(beside_ms / alone_ms, 2),
        "collector_peak_mb": round(peak_mb, 1),
        "failed": honest.failed,
        "acked_lost": len(honest.acknowledged - stored),
        "seen": seen,
    }


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _stored(path: Path) -> set[bytes]:
    """The keys of the honest tenant's records."""
    keys = set()
    with open_stream(f"sqlite:{path}") as stream:
        for number, end in stream.end_offsets(semconv.TOPIC_SPANS).items():
            for record in stream.read(semconv.TOPIC_SPANS, number, 0, end):
                if record.headers[semconv.HEADER_TENANT] == b"honest":
                    keys.add(record.key)
    return keys


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def be_bad(name: str, port: int) -> None:
    """The process of the bad client: until SIGTERM, when it prints what it was answered."""
    # It stands for another machine: what its requests cost is measured, and not what it costs to make them.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    bad = Bad(port, begin=lambda: print("begun", flush=True))

    def end(*_: Any) -> None:
        print(json.dumps({str(status): number for status, number in sorted(dict(bad.seen).items())}), flush=True)
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=CASES[name], args=(bad,), daemon=True).start()
    while True:
        time.sleep(60)


def cases(num_requests: int = 300, only: str = "") -> Iterator[dict[str, Any]]:
    """Every case whose name holds `only`."""
    for name in CASES:
        if only in name:
            yield run_case(name, num_requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=300, help="honest requests in each measurement")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--bad", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bad:
        be_bad(arguments.bad, arguments.port)
    for case in cases(arguments.requests, arguments.only):
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
