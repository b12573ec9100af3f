"""Adapters, registries and one real server for the serving tests."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from safetensors.numpy import save_file

from nightschool.keys import hash_key, new_key
from nightschool.registry.base_model import PACKAGED, base_model_folder, describe_base_model
from nightschool.registry.folder import Registry
from nightschool.registry.release import ADAPTER_CONFIG, WEIGHTS, BaseModel, ReleaseManifest, describe_file

# SmolLM2-135M: inputs and outputs of each adapted matrix.
SMOLLM2_LAYERS = 30
SMOLLM2_MODULES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (576, 192),
    "self_attn.v_proj": (576, 192),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (576, 1536),
    "mlp.up_proj": (576, 1536),
    "mlp.down_proj": (1536, 576),
}
TINY = BaseModel(weights="1" * 64, tokenizer="2" * 64, chat_template="3" * 64)


@dataclass(frozen=True)
class AdapterShape:
    """What adapter to make."""

    base_model: BaseModel = TINY
    layers: int = 1
    modules: dict[str, tuple[int, int]] = field(default_factory=lambda: {"self_attn.q_proj": (4, 6)})
    rank: int = 8
    scale: float = 0.02


def write_adapter(folder: Path, shape: AdapterShape, seed: int) -> None:
    """Random matrices that are not zero, with PEFT's names."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(shape.layers):
        for module, (inputs, outputs) in shape.modules.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            a, b = random.normal(size=(shape.rank, inputs)), random.normal(size=(outputs, shape.rank))
            tensors[f"{prefix}.lora_A.weight"] = (a * shape.scale).astype(np.float16)
            tensors[f"{prefix}.lora_B.weight"] = (b * shape.scale).astype(np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    targets = [module.rpartition(".")[2] for module in shape.modules]
    config = {"peft_type": "LORA", "r": shape.rank, "lora_alpha": 2 * shape.rank, "bias": "none", "target_modules": targets}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))


Publish = Callable[..., str]


def publish(
    registry: Registry, tenant: str, folder: Path, shape: AdapterShape, seed: int, *, pointed: bool = True, **changes: Any
) -> str:
    """File a release of `tenant` made from `seed`, point at it, and return it; `changes` are made to the manifest."""
    source = folder / f"{tenant}-{seed}"
    write_adapter(source, shape, seed)

    def describe(engine_id: int) -> ReleaseManifest:
        manifest = ReleaseManifest(
            tenant=tenant,
            engine_id=engine_id,
            base_model=shape.base_model,
            dtype="float32",
            rank=shape.rank,
            alpha=2 * shape.rank,
            target_modules=tuple(module.rpartition(".")[2] for module in shape.modules),
            files=tuple(describe_file(source / name) for name in (WEIGHTS, ADAPTER_CONFIG)),
            night=f"{seed:064x}",
            parent=None,
            rubrics={},
        )
        return replace(manifest, **changes)

    digest = registry.add(source, describe)
    if pointed:
        registry.move_pointer(tenant, registry.pointer(tenant), stable=digest)
    return digest


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def tiny_base_model() -> BaseModel:
    """The base model that tiny adapters belong to."""
    return TINY


@pytest.fixture
def publish_tiny(registry: Registry, tmp_path: Path) -> Publish:
    """Publish a tiny adapter: `publish_tiny(tenant, seed, rank=8, **manifest_changes) -> digest`."""

    def publish_one(tenant: str, seed: int, *, rank: int = 8, **changes: Any) -> str:
        return publish(registry, tenant, tmp_path / "adapters", AdapterShape(rank=rank), seed, **changes)

    return publish_one


class SpanSink:
    """A collector that keeps what was sent to it: (Authorization, export request)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        self.statuses: list[int] = []
        """Answers to give first; 200 when empty."""
        self.refused: set[str] = set()
        """Keys whose requests get 503."""
        self.refusals = 0
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
                status = sink.statuses.pop(0) if sink.statuses else 200
                if self.headers["Authorization"] in sink.refused:
                    sink.refusals, status = sink.refusals + 1, 503
                if status == 200:
                    export = ExportTraceServiceRequest.FromString(body)
                    sink.requests.append((self.headers["Authorization"], export))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spans(self) -> list[tuple[str, Any]]:
        """(Authorization, span) of everything received."""
        return [
            (authorization, span)
            for authorization, export in list(self.requests)
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def span_sink() -> Iterator[SpanSink]:
    sink = SpanSink()
    yield sink
    sink.close()


@pytest.fixture(scope="module")
def module_span_sink() -> Iterator[SpanSink]:
    sink = SpanSink()
    yield sink
    sink.close()


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class ServedTenant:
    """A tenant of the real server."""

    name: str
    key: str


@dataclass
class RunningServer:
    """A real `nightschool serve`, and what it takes to talk to it."""

    url: str
    registry: Registry
    folder: Path
    shape: AdapterShape
    tenants: dict[str, ServedTenant]
    sink: SpanSink
    process: subprocess.Popen[bytes]
    log: Path

    def request(self, method: str, path: str, body: Any = None, *, tenant: str | None = None, **headers: str) -> Any:
        """A request to open, with the key of `tenant`."""
        request = urllib.request.Request(self.url + path, method=method)
        request.data = None if body is None else json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
        if tenant:
            request.add_header("Authorization", f"Bearer {self.tenants[tenant].key}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        return request

    def call(self, method: str, path: str, body: Any = None, *, tenant: str | None = None, **headers: str) -> Answer:
        """One HTTP request and its whole answer."""
        try:
            with urllib.request.urlopen(self.request(method, path, body, tenant=tenant, **headers), timeout=120) as response:
                return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read().decode())

    def chat(self, tenant: str, model: str, text: str, headers: dict[str, str] | None = None, **body: Any) -> Answer:
        """One greedy chat completion."""
        body = {"temperature": 0, "max_tokens": 12, **body}
        messages = [{"role": "user", "content": text}]
        path = "/v1/chat/completions"
        return self.call("POST", path, {"model": model, "messages": messages, **body}, tenant=tenant, **(headers or {}))

    def is_up(self) -> bool:
        assert self.process.poll() is None, f"the server stopped; its log:\n{self.log.read_text()[-3000:]}"
        try:
            return self.call("GET", "/health").status == 200
        except urllib.error.URLError:
            return False

    def releases(self, tenant: str) -> Any:
        return self.call("GET", "/nightschool/v1/releases", tenant=tenant).json

    def publish(self, tenant: str, seed: int, **changes: Any) -> str:
        return publish(self.registry, tenant, self.folder / "adapters", self.shape, seed, **changes)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen; server log:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def publish_and_wait(self, tenant: str, seed: int) -> str:
        digest = self.publish(tenant, seed)
        self.wait_until(lambda: bool(self.releases(tenant)["release"] == digest), f"release {digest[:12]}")
        return digest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(folder: Path, port: int, collector: str, tenants: dict[str, ServedTenant]) -> Path:
    tables = "\n".join(f'[tenants.{t.name}]\nkey_sha256 = ["{hash_key(t.key)}"]' for t in tenants.values())
    path = folder / "nightschool.toml"
    # In bf16 two tokens may be equally likely, and the size of the batch decides between them; with float32 a test can
    # ask for exactly the same answer.
    path.write_text(
        f'[registry]\npath = "registry"\n[model]\npath = "{PACKAGED}"\ndtype = "float32"\n'
        f'[serving]\nport = {port}\ncollector = "{collector}"\npoll_seconds = 0.2\n'
        # The two tenants take both slots: so a row without an adapter that wrongly reads the last slot reads a
        # tenant's weights.
        f"max_loras = 2\n{tables}\n"
    )
    return path


Start = Callable[[Path, Path], "subprocess.Popen[bytes]"]


def start_server(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """`nightschool serve`, as its command line starts it."""
    # So that a test can see what came from the prefix cache.
    extra = ["--", "--enable-prompt-tokens-details"]
    command = [sys.executable, "-m", "nightschool_serving", "--config", str(config), *extra]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def run_server(folder: Path, sink: SpanSink, start: Start) -> RunningServer:
    """A server for two tenants on an empty registry, which may not have started yet."""
    model = base_model_folder(PACKAGED)
    shape = AdapterShape(describe_base_model(model), SMOLLM2_LAYERS, SMOLLM2_MODULES, rank=16, scale=0.06)
    tenants = {name: ServedTenant(name, new_key(name)) for name in ("bank", "telecom")}
    port, log = free_port(), folder / "server.log"
    Registry(folder / "registry").create()
    process = start(write_config(folder, port, sink.url, tenants), log)
    url = f"http://127.0.0.1:{port}"
    return RunningServer(url, Registry(folder / "registry"), folder, shape, tenants, sink, process, log)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, module_span_sink: SpanSink) -> Iterator[RunningServer]:
    """One real server; its spans go into a sink."""
    running = run_server(tmp_path_factory.mktemp("serving"), module_span_sink, start_server)
    try:
        running.wait_until(lambda: running.is_up(), "start of the server", seconds=600.0)
        yield running
    finally:
        stop(running.process)


@pytest.fixture
def make_server(tmp_path: Path, span_sink: SpanSink) -> Iterator[Callable[..., RunningServer]]:
    """Starts a server for one test, with `start(config, log) -> process`."""
    started: list[RunningServer] = []

    def make(start: Start = start_server) -> RunningServer:
        started.append(run_server(tmp_path, span_sink, start))
        return started[-1]

    yield make
    for running in started:
        stop(running.process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server, and after a minute kill every process of its session."""
    process.send_signal(signal.SIGTERM)  # does nothing to one that has ended
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
