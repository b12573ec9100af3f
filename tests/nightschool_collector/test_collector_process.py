"""The collector as it runs: a process of its own, real sockets, the official exporter, SIGKILL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import httpx
import psutil
import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from nightschool.keys import hash_key
from nightschool.outcomes.tokens import OutcomeKey, TokenClaims, mint_token
from nightschool.stream import open_stream

Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def config(tmp_path: Path, unused_port: int) -> Path:
    path = tmp_path / "nightschool.toml"
    path.write_text(
        f'[stream]\nurl = "sqlite:var/stream.db"\n[collector]\nport = {unused_port}\n'
        f'[tenants.acme]\nkey_sha256 = ["{hash_key("k")}"]\n'
    )
    return path


@pytest.fixture
def url(unused_port: int) -> str:
    return f"http://127.0.0.1:{unused_port}"


@pytest.fixture
def start(config: Path) -> Iterator[Start]:
    """Starts the collector and waits for the line that says it is ready."""
    running: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = launch(config)
        running.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("collecting on http://127.0.0.1:"), said + process.communicate()[1]
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nightschool_collector", "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def post_spans(client: httpx.Client, request: ExportTraceServiceRequest) -> httpx.Response:
    headers = {"content-type": "application/x-protobuf", "authorization": "Bearer k"}
    return client.post("/v1/traces", content=request.SerializeToString(), headers=headers)


def stored_spans(config: Path) -> list[Any]:
    """Every span in the stream's file, which is opened again."""
    with open_stream(f"sqlite:{config.parent / 'var' / 'stream.db'}") as stream:
        ends = stream.end_offsets("ns.otlp_spans")
        records = [record for p in ends for record in stream.read("ns.otlp_spans", p, 0, ends[p])]
    requests = [ExportTraceServiceRequest.FromString(record.value) for record in records]
    return [s for r in requests for group in r.resource_spans for scope in group.scope_spans for s in scope.spans]


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_the_official_exporter_gets_through(start: Start, config: Path, url: str, compression: Compression) -> None:
    """Spans of OpenTelemetry's own SDK and OTLP exporter arrive, whatever its compression."""
    start()
    exporter = OTLPSpanExporter(f"{url}/v1/traces", headers={"authorization": "Bearer k"}, compression=compression)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("tests")
    for number in range(20):
        with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner", attributes={"n": number}):
            pass
    assert provider.force_flush()
    provider.shutdown()
    found = stored_spans(config)
    assert sorted(s.attributes[0].value.int_value for s in found if s.name == "inner") == list(range(20))
    assert {s.parent_span_id for s in found if s.name == "inner"} == {s.span_id for s in found if s.name == "outer"}


def test_the_ready_line_says_where_and_for_whom(start: Start, config: Path, url: str) -> None:
    """The one line of a start names the address, the stream and the tenants, and is true when it is printed."""
    command = start()
    assert httpx.get(f"{url}/readyz").status_code == 200
    command.send_signal(signal.SIGTERM)
    command.wait(timeout=30)
    second = launch(config)
    assert second.stdout is not None
    line = second.stdout.readline()
    second.kill()
    second.communicate()
    assert line == f"collecting on {url} into sqlite:{config.parent / 'var' / 'stream.db'} for tenants acme\n"


def test_what_was_acknowledged_survives_sigkill(start: Start, config: Path, url: str, requests: Any) -> None:
    """Killed three times during concurrent requests, the collector has every span that it answered with 200."""
    acknowledged: list[int] = []
    for round_number in range(3):
        process = start()

        def send(worker: int, process: subprocess.Popen[str] = process, first: int = round_number * 100_000) -> list[int]:
            done = []
            with httpx.Client(base_url=url, timeout=30) as client:
                for n in range(10_000):
                    name = first + worker * 10_000 + n
                    try:
                        answer = post_spans(client, requests.spans(*range(1, 5), name=str(name)))
                    except httpx.TransportError:
                        return done
                    assert answer.status_code == 200, answer.text
                    done.append(name)
                    if worker == 0 and n == 20:
                        os.kill(process.pid, signal.SIGKILL)
            raise AssertionError("the collector outlived SIGKILL")

        with ThreadPoolExecutor(4) as pool:
            acknowledged += [name for done in pool.map(send, range(4)) for name in done]
        process.wait(timeout=30)
    found = [int(span.name) for span in stored_spans(config)]
    assert len(acknowledged) >= 3 * 21
    assert all(found.count(name) == 4 for name in acknowledged)


def test_sigterm_finishes_what_it_began(start: Start, config: Path, url: str, requests: Any) -> None:
    """Told to stop, the collector takes nothing new, loses nothing acknowledged and closes the stream."""
    process = start()
    with httpx.Client(base_url=url, timeout=30) as client:
        assert post_spans(client, requests.spans(1)).status_code == 200
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        with pytest.raises(httpx.TransportError):
            post_spans(client, requests.spans(2))
    assert "Traceback" not in process.communicate()[1]
    assert not (config.parent / "var" / "stream.db-wal").exists()  # SQLite removes it when the file is closed in order
    assert [span.trace_id[-1] for span in stored_spans(config)] == [1]


def test_a_request_half_sent_at_sigterm_is_finished(start: Start, config: Path, unused_port: int, requests: Any) -> None:
    """What was being received when the signal came is stored and acknowledged; then the process ends."""
    body = requests.spans(1).SerializeToString()
    process = start()
    head = f"POST /v1/traces HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", unused_port), timeout=30) as connection:
        connection.sendall(f"{head}content-type: application/x-protobuf\r\n\r\n".encode() + body[:10])
        with httpx.Client(timeout=30) as client:  # answered after the half above was read
            assert client.get(f"http://127.0.0.1:{unused_port}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        while True:  # until it accepts no new connection
            try:
                socket.create_connection(("127.0.0.1", unused_port), timeout=30).close()
            except OSError:
                break
        connection.sendall(body[10:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    process.wait(timeout=30)
    assert [span.trace_id[-1] for span in stored_spans(config)] == [1]


@pytest.fixture
def workers(config: Path) -> Path:
    config.write_text(config.read_text().replace("[collector]", "[collector]\nworkers = 2"))
    return config


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_keys_come_and_go_while_it_runs(start: Start, config: Path, url: str, requests: Any, num_workers: int) -> None:
    """A key added to the file opens, a removed one is refused, and meanwhile no request of another key is lost."""
    text = config.read_text().replace("[collector]", f"[collector]\nworkers = {num_workers}")
    config.write_text(text)
    process = start()
    stop = Event()

    def keep_sending() -> set[int]:
        with httpx.Client(base_url=url, timeout=30) as client:
            return {post_spans(client, requests.spans(1)).status_code for _ in iter(stop.is_set, True)}

    def status_of(key: str) -> int:
        request = requests.spans(1).SerializeToString()
        headers = {"content-type": "application/x-protobuf", "authorization": f"Bearer {key}"}
        return httpx.post(f"{url}/v1/traces", content=request, headers=headers, timeout=30).status_code

    def until(key: str, status: int) -> None:
        # A new connection each time: both workers answer.
        while [status_of(key) for _ in range(4)] != [status] * 4:
            time.sleep(0.05)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(keep_sending)
        config.write_text(text.replace("key_sha256 = [", f'key_sha256 = ["{hash_key("new")}", '))
        until("new", 200)
        config.write_text(text)
        process.send_signal(signal.SIGHUP)  # which would end the process
        until("new", 401)
        stop.set()
        assert sending.result() == {200}
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert said.count("1 keys added") == 1
    assert said.count("1 revoked") == 1


def test_outcome_keys_come_and_go_while_it_runs(start: Start, config: Path, url: str) -> None:
    """A token of a page is good from when its key is in the file, and no longer than that."""
    text, key = config.read_text(), OutcomeKey("k1", b"s" * 32)
    secret = config.with_name("outcome.key")
    secret.write_bytes(key.secret)
    process, now_s = start(), int(time.time())
    token = mint_token(key, TokenClaims("acme", "0af7651916cd43dd8448eb211c80319c", ("thumb",), now_s, now_s + 600, "t-1"))

    def until(status: int) -> None:
        body = {"token": token, "name": "thumb", "value": True}
        while httpx.post(f"{url}/v1/outcomes/browser", json=body, timeout=30).status_code != status:
            time.sleep(0.05)

    until(401)
    config.write_text(text.replace("key_sha256 = [", f'outcome_keys = ["k1=file:{secret}"]\nkey_sha256 = ['))
    process.send_signal(signal.SIGHUP)
    until(202)
    config.write_text(text)
    process.send_signal(signal.SIGHUP)
    until(401)


def test_a_silent_connection_is_closed_by_the_collector(start: Start, unused_port: int) -> None:
    """The limits on connections are in force in the process that runs."""
    start()
    with socket.create_connection(("127.0.0.1", unused_port), timeout=30) as connection:
        connection.sendall(b"POST /v1/traces HTTP/1.1\r\n" + b"x: " + b"a" * 70_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 431")


def test_a_small_limit_on_open_files_is_raised(config: Path) -> None:
    """A process that may open 256 files asks for as many as the limit on connections needs."""
    command = f"ulimit -S -n 256; exec {sys.executable} -m nightschool_collector --config {config}"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("collecting on ")
        soft, hard = psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE)
        process.kill()
    assert soft >= min(hard, 4096)


def test_workers_share_a_port_and_their_numbers(start: Start, workers: Path, url: str, requests: Any) -> None:
    """Two processes answer on one port, and /metrics of either counts both; a signal ends both in order."""
    process = start()
    assert len(children_of(process.pid)) == 2
    for trace in range(1, 11):
        with httpx.Client(base_url=url, timeout=30) as client:
            assert post_spans(client, requests.spans(trace)).status_code == 200
    assert 'accepted_items_total{signal="traces"} 10\n' in httpx.get(f"{url}/metrics").text
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert "Traceback" not in process.communicate()[1]
    assert len(stored_spans(workers)) == 10


def test_a_worker_that_dies_is_replaced_and_none_outlives_its_parent(start: Start, workers: Path, url: str) -> None:
    """A killed worker is replaced, and a line says so; workers of a killed parent end by themselves."""
    process = start()
    victim, survivor = children_of(process.pid)
    victim.kill()
    assert process.stderr is not None
    assert "ended with -9, starting another" in process.stderr.readline()
    while len(both := children_of(process.pid)) < 2 or victim in both:
        time.sleep(0.05)
    assert survivor in both
    process.kill()
    _, alive = psutil.wait_procs(both, timeout=30)
    assert alive == []


def test_grpc_is_served_by_the_same_process(start: Start, config: Path, requests: Any) -> None:
    """With a grpc_port both protocols are answered, and both are drained."""
    grpc_port = free_port()
    config.write_text(config.read_text().replace("[collector]", f"[collector]\ngrpc_port = {grpc_port}"))
    process = start()
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        TraceServiceStub(channel).Export(requests.spans(3), metadata=(("authorization", "Bearer k"),))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    assert "Traceback" not in process.communicate()[1]
    assert [span.trace_id[-1] for span in stored_spans(config)] == [3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no tenant has a key"),
        ("[tenants.acme]\n", "'nightschool key --tenant NAME' makes one"),
        ("[collector]\nport = 0\n", "nightschool.toml:2: port is 0"),
    ],
)
def test_settings_that_cannot_work_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    """A start that cannot succeed ends with status 2 and one line that says what to do."""
    path = tmp_path / "nightschool.toml"
    path.write_text(text)
    process = launch(path)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (2, 1)
    assert errors.startswith("nightschool collect: ")
    assert message in errors


def test_a_port_in_use_is_one_line(start: Start, config: Path, unused_port: int) -> None:
    """A second collector on the same port says that the port is in use."""
    start()
    process = launch(config)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (2, 1)
    assert f"cannot listen on 127.0.0.1:{unused_port}: Address already in use" in errors


def test_the_missing_extra_is_named(config: Path) -> None:
    """Without FastAPI the message has the command that installs it."""
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        f"from nightschool_collector.__main__ import main\nsys.exit(main(['--config', {str(config)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'nightschool[collector]'" in done.stderr


def test_help_needs_nothing_heavy() -> None:
    """Arguments are parsed before anything that takes long to import."""
    code = (
        "import sys\nfrom nightschool_collector.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('fastapi', 'uvicorn', 'starlette', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
