"""The doctor names the broken hop: a real collector process and a real stream, each hop broken in turn.

Where vLLM would be too heavy a server speaks its protocol, and serving's own code builds and sends its span.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nightschool import semconv as names
from nightschool.base_model import PACKAGED, base_model_folder
from nightschool.config import NightConfig
from nightschool.keys import hash_key, new_key
from nightschool.registry import Pointer
from nightschool.release import BaseModel, describe_file
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.doctor.findings import Hop, Status
from nightschool_nightly.episodes import EpisodeStore
from nightschool_nightly.freeze import freeze_night
from nightschool_serving.recorder import Choice, Recording
from nightschool_serving.spans import ServedRequest, TraceParent
from nightschool_serving.telemetry import Telemetry

RUBRIC = 'task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"\n'
RESPONSE_ID = "chatcmpl-d0c"


@dataclass
class Manners:
    """How the serving endpoint behaves; every one but the first value is a way to break a hop."""

    status: int = 200
    names_release: str | None = "base"
    collector: str = ""
    """Where its spans go; nowhere when empty."""
    logprobs: tuple[float, ...] = (-0.5, -0.25)
    span_response_id: str = RESPONSE_ID
    keeps_trace: bool = True
    tokenizer: str = ""
    """SHA-256 of a tokenizer; the base model's own when empty."""
    body: dict[str, Any] = field(default_factory=lambda: {"id": RESPONSE_ID, "model": "base"})


class Serving(ThreadingHTTPServer):
    """A serving endpoint without a model: vLLM's answer, our header, our span."""

    daemon_threads = True

    def __init__(self, manners: Manners, tenant: str, key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.manners, self.tenant, self.key = manners, tenant, key
        self.telemetry = Telemetry(manners.collector) if manners.collector else None

    def record(self, traceparent: str | None, authorization: str) -> None:
        if self.telemetry is None:
            return
        now, manners = time.time_ns(), self.manners
        choice = Choice(token_ids=[5, 6], logprobs=list(manners.logprobs), finish_reason="stop")
        self.telemetry.record(
            ServedRequest(
                tenant=self.tenant,
                authorization=authorization,
                operation="chat",
                alias="nightschool",
                model="base",
                release=manners.names_release or "base",
                tokenizer=manners.tokenizer or tokenizer_of_the_base_model(),
                captures_content=True,
                response_id=manners.span_response_id,
                started_ns=now,
                parent=TraceParent.parse(traceparent if manners.keeps_trace else None),
                sent={},
                recording=Recording(prompts=[[1, 2, 3]], choices={(0, 0): choice}),
                ended_ns=now,
                status=200,
            )
        )


class _Answering(BaseHTTPRequestHandler):
    server: Serving

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        manners, is_known = self.server.manners, self.headers["Authorization"] == f"Bearer {self.server.key}"
        status = manners.status if is_known else 401
        message = {"role": "assistant", "content": "Fine."}
        answered = {**manners.body, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        body = json.dumps(answered if status == 200 else {"error": {"message": "no"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 200 and manners.names_release:
            self.send_header(names.RELEASE_RESPONSE_HEADER, manners.names_release)
        self.end_headers()
        self.wfile.write(body)
        if status == 200:
            self.server.record(self.headers.get("traceparent"), self.headers["Authorization"])

    def log_message(self, *_: Any) -> None: ...


def tokenizer_of_the_base_model() -> str:
    return describe_file(base_model_folder(PACKAGED) / "tokenizer.json").sha256


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class Clinic:
    """A folder with a configuration and a key, and the collector that reads it."""

    folder: Path
    key: str
    collector: str
    stop_serving: Callable[[], None] = lambda: None

    def config(self, name: str = "nightschool.toml") -> Path:
        return self.folder / name

    def serve(self, **manners: Any) -> str:
        """Start an endpoint; returns its URL."""
        served = Serving(Manners(**{"collector": self.collector, **manners}), "bank", self.key)
        threading.Thread(target=served.serve_forever, daemon=True).start()

        def stop() -> None:
            served.shutdown()
            served.server_close()
            if served.telemetry:
                served.telemetry.close(1.0)

        self.stop_serving = stop
        return f"http://127.0.0.1:{served.server_address[1]}"

    def examine(self, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
        """Run the command as a person does; its exit status and what it found."""
        command = [sys.executable, "-m", "nightschool", "doctor", "--config", str(self.config()), "--json", "--wait", "3"]
        variables = {**os.environ, "NIGHTSCHOOL_API_KEY": self.key, **environment}
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, env=variables)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)


def settings(key: str, collector_port: int, serving_port: int, *, stream: str = "stream.db") -> str:
    return (
        f'[stream]\nurl = "sqlite:{stream}"\n[registry]\npath = "registry"\n[collector]\nport = {collector_port}\n'
        f'[serving]\nport = {serving_port}\ncollector = "http://127.0.0.1:{collector_port}"\n'
        f'[night]\nstate = "nights"\n[tenants.bank]\nkey_sha256 = ["{hash_key(key)}"]\nrubrics = ["r.toml"]\n'
    )


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    """A collector process that all tests share."""
    folder, key = tmp_path_factory.mktemp("clinic"), new_key("bank")
    collector_port, serving_port = free_ports(2)
    (folder / "nightschool.toml").write_text(settings(key, collector_port, serving_port))
    (folder / "r.toml").write_text(RUBRIC)
    command = [sys.executable, "-m", "nightschool", "collect", "--config", str(folder / "nightschool.toml")]
    with (folder / "collector.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{collector_port}"
    try:
        wait_until_ready(process, url, folder / "collector.log")
        yield Clinic(folder, key, url)
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)


@pytest.fixture
def clinic(hospital: Clinic) -> Iterator[Clinic]:
    """The shared collector; whatever endpoint a test starts is stopped."""
    hospital.stop_serving = lambda: None
    yield hospital
    hospital.stop_serving()


def broken(found: dict[str, Any]) -> dict[str, Any]:
    """The first broken hop."""
    hop: dict[str, Any] = next(one for one in found["hops"] if one["hop"] == found["first_broken"])
    return hop


def test_all_is_well(clinic: Clinic) -> None:
    """With every part there each hop is well, everything arrived, and the exit status is 0."""
    code, found = clinic.examine("--serving", clinic.serve())
    assert (code, found["well"], found["first_broken"]) == (0, True, None), found
    assert [hop["hop"] for hop in found["hops"]] == list(Hop)
    assert {hop["status"] for hop in found["hops"]} == {Status.OK}
    arrived = {name: is_there for hop in found["hops"] for name, is_there in hop["arrived"].items()}
    assert {"messages", "answer", "task", "user", "completion token ids", "log-probabilities", "release", "outcome"} <= set(
        arrived
    )
    assert all(arrived.values())


def test_no_night_learns_from_what_the_doctor_sent(clinic: Clinic) -> None:
    """Its episode has the reserved task, whatever else it holds."""
    clinic.examine("--serving", clinic.serve())
    base = BaseModel("a" * 64, "b" * 64, "c" * 64)
    with SqliteStream(clinic.folder / "stream.db", partitions=12) as stream:
        manifest = freeze_night(
            stream,
            tenant="bank",
            settings=NightConfig(),
            dtype="float32",
            base_model=base,
            rubrics={},
            pointer=Pointer(),
            last_published=None,
            now_ms=time.time_ns() // 1_000_000,
        )
        store = EpisodeStore(clinic.folder / f"store-{time.monotonic_ns()}")
        store.build(stream, manifest)
        built = [item.episode for item in store.episodes("bank")]
        store.close()
    assert built and {episode.task for episode in built} == {names.DOCTOR_TASK}


@pytest.mark.parametrize(
    ("manners", "hop", "says"),
    [
        ({"status": 503}, Hop.SERVING, "answers 503"),
        ({"status": 404}, Hop.SERVING, "answers 404"),
        ({"body": {}}, Hop.SERVING, "not with a chat completion that has an id"),
        ({"names_release": None}, Hop.RELEASE, "no x-nightschool-release header"),
        ({"names_release": "f" * 64}, Hop.RELEASE, "ffffffffffff answered, but the registry points at base"),
        ({"collector": ""}, Hop.SERVER_SPAN, "no span of serving in the stream"),
        ({"logprobs": ()}, Hop.TOKENS, "lacks: prompt token ids, completion token ids, log-probabilities"),
        ({"tokenizer": "e" * 64}, Hop.TOKENS, "of another tokenizer"),
        ({"span_response_id": "chatcmpl-other"}, Hop.JOIN, "not joined to the app's call"),
    ],
)
def test_serving_broken_in_each_way_is_named(clinic: Clinic, manners: dict[str, Any], hop: Hop, says: str) -> None:
    """Whatever is wrong with serving is the first broken hop, with what to do; the hops before it are well."""
    code, found = clinic.examine("--serving", clinic.serve(**manners))
    assert (code, found["first_broken"]) == (1, hop), found
    assert says in broken(found)["text"] and broken(found)["fix"]
    before = found["hops"][: list(Hop).index(hop)]
    assert {one["status"] for one in before} == {Status.OK}


def test_serving_that_is_not_there(clinic: Clinic) -> None:
    """The outcome and the app's half of the episode are still checked; what needs serving is not."""
    code, found = clinic.examine()
    status = {hop["hop"]: hop["status"] for hop in found["hops"]}
    assert (code, found["first_broken"]) == (1, Hop.SERVING)
    assert status[Hop.OUTCOME_JOIN] == status[Hop.EPISODE] == Status.OK
    assert status[Hop.TOKENS] == status[Hop.JOIN] == Status.NOT_CHECKED


def test_a_trace_that_a_proxy_cuts_is_joined_by_response_id(clinic: Clinic) -> None:
    """The server's span in a trace of its own breaks nothing, and is said."""
    code, found = clinic.examine("--serving", clinic.serve(keeps_trace=False))
    assert code == 0, found
    (span,) = (hop for hop in found["hops"] if hop["hop"] == Hop.SERVER_SPAN)
    assert "not in the app's trace" in span["text"]


@pytest.mark.parametrize(
    ("text", "hop", "says"),
    [
        (lambda key, port: "[nonsense]\n", Hop.CONFIGURATION, "unknown section or key 'nonsense'"),
        (lambda key, port: settings(new_key("bank"), port, port), Hop.KEY, "the key is no tenant's"),
        (lambda key, port: settings(key, *free_ports(2)), Hop.COLLECTOR, "nothing answers at"),
        (lambda key, port: settings(key, port, port, stream="none.db"), Hop.STREAM, "does not exist"),
    ],
)
def test_a_wrong_configuration_is_named(clinic: Clinic, text: Callable[[str, int], str], hop: Hop, says: str) -> None:
    """A file that is wrong, a foreign key, a collector or a stream that is elsewhere."""
    port = int(clinic.collector.rpartition(":")[2])
    clinic.config("other.toml").write_text(text(clinic.key, port))
    code, found = clinic.examine("--config", str(clinic.config("other.toml")))
    assert (code, found["first_broken"]) == (1, hop), found
    assert says in broken(found)["text"] and broken(found)["fix"]


def test_a_collector_that_writes_elsewhere_is_named(clinic: Clinic) -> None:
    """Acknowledged is not enough: what is not in the configured stream no night will ever read."""
    port = int(clinic.collector.rpartition(":")[2])
    SqliteStream(clinic.folder / "empty.db", partitions=2).close()
    clinic.config("other.toml").write_text(settings(clinic.key, port, port, stream="empty.db"))
    _, found = clinic.examine("--config", str(clinic.config("other.toml")), "--serving", clinic.serve())
    assert found["first_broken"] == Hop.RECORD and "acknowledged but are not" in broken(found)["text"]


def test_a_collector_that_does_not_know_the_key_is_named(clinic: Clinic) -> None:
    """A key that this configuration has and the running collector has not."""
    port, key = int(clinic.collector.rpartition(":")[2]), new_key("bank")
    clinic.config("other.toml").write_text(settings(key, port, port))
    _, found = clinic.examine("--config", str(clinic.config("other.toml")), NIGHTSCHOOL_API_KEY=key)
    assert found["first_broken"] == Hop.AUTHENTICATION and "does not know the key" in broken(found)["text"]


def test_a_tracer_that_is_off_is_named(clinic: Clinic) -> None:
    """The switch that turns an app's tracer off is found in the doctor's environment too."""
    _, found = clinic.examine(NIGHTSCHOOL_DISABLED="1")
    assert found["first_broken"] == Hop.TRACER and "NIGHTSCHOOL_DISABLED" in broken(found)["text"]


def test_no_key_and_no_file_are_named(clinic: Clinic) -> None:
    """What a newcomer forgets first is said first."""
    assert clinic.examine(NIGHTSCHOOL_API_KEY="")[1]["first_broken"] == Hop.KEY
    assert clinic.examine("--config", str(clinic.folder / "absent.toml"))[1]["first_broken"] == Hop.CONFIGURATION


def test_lines_are_for_a_person(clinic: Clinic) -> None:
    """A line per hop, what to do below the broken one, the first broken hop last; the key is never shown."""
    command = [
        sys.executable,
        "-m",
        "nightschool",
        "doctor",
        "--config",
        str(clinic.config()),
        "--key",
        clinic.key,
        "--wait",
        "3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "BROKEN  serving" in done.stdout and "do: start it: nightschool serve" in done.stdout
    assert done.stdout.rstrip().endswith("the first broken hop is: serving")
    assert clinic.key not in done.stdout + done.stderr
