"""Measures what one bad client of `nightschool serve` costs an honest tenant beside it.

`make bench NAME=abuse_serving`. One real vLLM server on the packaged model, with two tenants: `honest` asks for one
token at a time over one connection, `bad` does what the case says. Each case is one JSON object a line:

`case`                 what the bad client does
`honest_p99_ms_alone`  without the bad client, just before, on the same server
`honest_p99_ms`        with it
`honest_p99_ratio`     the second divided by the first
`guard_extra_mb`       the server's largest memory during the case, above that before it
`failed`               honest requests that were not answered with 200
`seen`                 what shows that the bad client did what it should

The collector is a small server here, which takes the spans of `honest` and answers those of `bad` with 503. The registry
that hangs is simulated inside the server's process: reading the pointer of `bad` waits as long as a file is there.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402 - run as a script

from nightschool.config.reader import load_config  # noqa: E402
from nightschool.keys import hash_key  # noqa: E402
from nightschool.registry.folder import Registry  # noqa: E402

HANG_VARIABLE = "ABUSE_HANG_FILE"
START_S = 600  # for a server on a machine that does other things too
_SETTLE_S = 1.0
_CHAT = {"model": "nightschool", "messages": [{"role": "user", "content": "Where is my card?"}], "max_tokens": 1}


@dataclass
class Collector:
    """Takes the spans of all keys but those in `refused`, and counts both."""

    refused: set[str] = field(default_factory=set)
    taken: int = 0
    turned_away: int = 0

    def start(self) -> str:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                is_refused = self.headers["Authorization"] in collector.refused
                collector.turned_away += is_refused
                collector.taken += not is_refused
                self.send_response(503 if is_refused else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"


@dataclass
class Bench:
    """The running server and its two tenants."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]
    collector: Collector
    num_requests: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def chat(self, connection: http.client.HTTPConnection, tenant: str, **changes: Any) -> int:
        headers = {"Authorization": f"Bearer {tenant}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps({**_CHAT, **changes}), headers)
        response = connection.getresponse()
        response.read()
        return response.status

    def releases(self, tenant: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/nightschool/v1/releases", headers={"Authorization": f"Bearer {tenant}"})
        return dict(json.loads(connection.getresponse().read()))

    def honest(self) -> tuple[float, int]:
        """The p99 in milliseconds of the honest tenant's requests, and how many were not answered with 200."""
        times, failed = [], 0
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        for _ in range(self.num_requests):
            began = time.perf_counter()
            try:
                failed += self.chat(connection, "honest") != 200
            except (OSError, http.client.HTTPException):
                failed += 1
                connection.close()
            times.append(1000 * (time.perf_counter() - began))
        connection.close()
        return sorted(times)[int(0.99 * (len(times) - 1))], failed

    def case(self, name: str, bad: Callable[[Bench], contextlib.AbstractContextManager[Callable[[], Any]]]) -> dict[str, Any]:
        """Measure the honest tenant alone, and then beside the bad client."""
        alone_ms, _ = self.honest()
        server = psutil.Process(self.process.pid)
        before = server.memory_info().rss
        peak, ended = [before], threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                peak.append(server.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with bad(self) as look:
            time.sleep(_SETTLE_S)
            beside_ms, failed = self.honest()
            seen = look()
        ended.set()
        watcher.join()
        return {
            "case": name,
            "honest_p99_ms_alone": round(alone_ms, 1),
            "honest_p99_ms": round(beside_ms, 1),
            "honest_p99_ratio": round(beside_ms / alone_ms, 2),
            "guard_extra_mb": round((max(peak) - before) / 2**20, 1),
            "failed": failed,
            "seen": seen,
        }


# --- the bad clients ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def half_sent_bodies(bench: Bench) -> Iterator[Callable[[], Any]]:
    """64 requests of one key that send a megabyte, all but the last tenth, and no more."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer bad\r\ncontent-length: 1150000\r\n\r\n"
    clients = [bench.connect() for _ in range(64)]
    for client in clients:
        with contextlib.suppress(OSError):  # it was refused while it was sending
            client.sendall(head + b"x" * (1 << 20))
    yield lambda: f"{sum(map(_is_refused, clients))} of {len(clients)} refused at once, the others within 30 s"
    for client in clients:
        client.close()


def _is_refused(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        return client.recv(100).startswith(b"HTTP/1.1 503")
    except TimeoutError:
        return False
    except OSError:
        return True


@contextlib.contextmanager
def silent_connections(bench: Bench) -> Iterator[Callable[[], Any]]:
    """3,000 connections that say nothing, more than the server holds."""
    clients = []
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for _ in range(3000):
        with contextlib.suppress(OSError):
            clients.append(bench.connect())
    yield lambda: f"{len(clients)} connections opened"
    for client in clients:
        client.close()


@contextlib.contextmanager
def full_share(bench: Bench) -> Iterator[Callable[[], Any]]:
    """The collector takes no span of the bad tenant now, and that tenant keeps asking."""
    collector, ended = bench.collector, threading.Event()
    collector.refused.add("Bearer bad")
    taken, turned_away = collector.taken, collector.turned_away

    def keep_asking() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", bench.port, timeout=60)
        while not ended.wait(0.05):
            bench.chat(connection, "bad")

    asking = threading.Thread(target=keep_asking)
    asking.start()
    yield (
        lambda: (
            f"{collector.turned_away - turned_away} exports of bad turned away, {collector.taken - taken} of honest taken meanwhile"
        )
    )
    ended.set()
    asking.join()
    collector.refused.clear()


@contextlib.contextmanager
def damaged_pointer(bench: Bench) -> Iterator[Callable[[], Any]]:
    """A pointer of 50,000 opening brackets, read at each look."""
    pointer = bench.folder / "registry" / "bad" / "pointer.json"
    pointer.parent.mkdir(exist_ok=True)
    pointer.write_text("[" * 50_000)
    yield lambda: bench.releases("bad")["registry"]
    pointer.unlink()


@contextlib.contextmanager
def hanging_registry(bench: Bench) -> Iterator[Callable[[], Any]]:
    """Reading the bad tenant's pointer does not return."""
    hang = bench.folder / "hang"
    hang.touch()
    time.sleep(11)  # until the first read is given up
    yield lambda: bench.releases("bad")["registry"]
    hang.unlink()


CASES: dict[str, Callable[[Bench], contextlib.AbstractContextManager[Callable[[], Any]]]] = {
    "half-sent bodies": half_sent_bodies,
    "silent connections": silent_connections,
    "a full collector share": full_share,
    "a damaged pointer": damaged_pointer,
    "a hanging registry": hanging_registry,
}


# --- the server ---------------------------------------------------------------------------------------------------------
def serve(argv: list[str]) -> None:
    """The process that is measured: `nightschool serve` with a registry that hangs on demand."""
    from nightschool_serving import server

    read, hang = Registry.pointer, Path(os.environ[HANG_VARIABLE])

    def pointer(registry: Registry, tenant: str) -> Any:
        while tenant == "bad" and hang.exists():
            time.sleep(0.1)
        return read(registry, tenant)

    Registry.pointer = pointer  # type: ignore[method-assign]
    sys.argv[1:] = argv
    server.main()


@contextlib.contextmanager
def running(num_requests: int) -> Iterator[Bench]:
    """A server that is ready, with an empty registry."""
    from nightschool.machine import read_machine
    from nightschool_serving.launch import server_arguments, server_environment

    collector = Collector()
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        folder, path = Path(name), Path(name) / "nightschool.toml"
        tenants = "".join(f'[tenants.{tenant}]\nkey_sha256 = ["{hash_key(tenant)}"]\n' for tenant in ("honest", "bad"))
        path.write_text(
            f'[registry]\npath = "registry"\n[serving]\nport = {port}\ncollector = "{collector.start()}"\n'
            f"poll_seconds = 0.2\n{tenants}"
        )
        Registry(folder / "registry").create()
        config = load_config(path)
        environment = {
            **os.environ,
            **server_environment(path, config, os.environ, read_machine()),
            HANG_VARIABLE: str(folder / "hang"),
        }
        command = [sys.executable, __file__, "--serve", *server_arguments(config, [], read_machine())]
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        bench = Bench(port, folder, process, collector, num_requests)
        try:
            _await(bench)
            yield bench
        finally:
            process.terminate()
            process.wait(180)


def _await(bench: Bench) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and bench.process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", bench.port, timeout=60)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                bench.honest()  # warm
                return
        time.sleep(0.5)
    raise SystemExit((bench.folder / "server.log").read_text()[-3000:])


def cases(num_requests: int = 200) -> Iterator[dict[str, Any]]:
    """Every case, measured on one server."""
    with running(num_requests) as bench:
        for name, bad in CASES.items():
            yield bench.case(name, bad)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=200, help="honest requests in each measurement")
    for case in cases(parser.parse_args().requests):
        print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main()
