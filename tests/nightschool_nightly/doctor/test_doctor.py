"""The doctor names the broken hop: a real collector process and a real stream, each hop broken in turn.

Where vLLM would be too heavy a server speaks its protocol, and serving's own code builds and sends its span.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool import semconv as names
from nightschool.keys import hash_key, new_key
from nightschool.registry.base_model import PACKAGED, base_model_folder
from nightschool.registry.release import describe_file
from nightschool.stream import Record
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.doctor.findings import Hop, Status
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.freeze.freeze import freeze_whole_stream
from nightschool_serving.telemetry.recorder import Choice, Recording
from nightschool_serving.telemetry.sender import Telemetry
from nightschool_serving.telemetry.spans import ServedRequest, TraceParent
from tests.warm_python import WarmPython

RUBRIC = 'task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"\n'
RESPONSE_ID = "chatcmpl-d0c"
# Seconds that the doctor waits for a record. It goes on as soon as the record is there, so a busy machine needs many;
# only where a record never comes does a test pay for all of them.
WAIT_S, NEVER_COMES_S = 60, 5


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
    prompt: tuple[int, ...] = (1, 2, 3)
    clock_s: float = 0.0
    """How far its clock is ahead."""
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
        manners = self.manners
        now = time.time_ns() + int(manners.clock_s * 1e9)
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
                recording=Recording(prompts=[list(manners.prompt)], choices={(0, 0): choice}),
                ended_ns=now,
                status=200,
            )
        )


Change = Callable[[str, bytes], "tuple[str, bytes] | int"]
"""What a proxy makes of a request: the URL and the body (without gzip) that it passes on, or the status it answers."""


class Proxy(ThreadingHTTPServer):
    """A proxy between an app and the collector: passes every request on as `change` says."""

    daemon_threads = True

    def __init__(self, change: Change) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.change = change


class _Passing(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass_on(self, body: bytes) -> None:
        body = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
        changed = self.server.change(self.path, body)
        if isinstance(changed, int):
            self._answer(changed, b"")
            return
        url, body = changed
        headers = {name: value for name in ("Authorization", "Content-Type") if (value := self.headers[name])}
        host, _, path = url.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request(self.command, f"/{path}", body or None, headers)
        answer = connection.getresponse()
        self._answer(answer.status, answer.read())
        connection.close()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


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
    python: WarmPython
    stop_serving: Callable[[], None] = lambda: None
    proxies: list[Proxy] = field(default_factory=list)

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

    def between(self, change: Change) -> str:
        """Start a proxy before the collector; returns its URL."""
        proxy = Proxy(change)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        self.proxies.append(proxy)
        return f"http://127.0.0.1:{proxy.server_address[1]}"

    def stop(self) -> None:
        """Stop the endpoint and the proxies of one test."""
        self.stop_serving()
        self.stop_serving = lambda: None
        for proxy in self.proxies:
            proxy.shutdown()
            proxy.server_close()
        self.proxies.clear()

    def examine(self, *arguments: str, wait_s: int = WAIT_S, **environment: str) -> tuple[int, dict[str, Any]]:
        """Run the doctor in a process of its own; its exit status and what it found."""
        command = ["--config", str(self.config()), "--json", "--wait", str(wait_s), *arguments]
        variables = {**os.environ, "NIGHTSCHOOL_API_KEY": self.key, **environment}
        done = self.python.run("nightschool_nightly.doctor", *command, env=variables)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)


def settings(key: str, collector_port: int, serving_port: int, *, stream: str = "stream.db") -> str:
    return (
        f'[stream]\nurl = "sqlite:{stream}"\n[registry]\npath = "registry"\n[collector]\nport = {collector_port}\n'
        f'[serving]\nport = {serving_port}\ncollector = "http://127.0.0.1:{collector_port}"\n'
        f'[night]\nstate = "nights"\n[tenants.bank]\nkey_sha256 = ["{hash_key(key)}"]\nrubrics = ["r.toml"]\n'
    )


@contextmanager
def collecting(folder: Path, key: str, python: WarmPython) -> Iterator[Clinic]:
    """A collector process with a configuration and a stream of its own."""
    collector_port, serving_port = free_ports(2)
    (folder / "nightschool.toml").write_text(settings(key, collector_port, serving_port))
    (folder / "r.toml").write_text(RUBRIC)
    command = [sys.executable, "-m", "nightschool", "collect", "--config", str(folder / "nightschool.toml")]
    with (folder / "collector.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{collector_port}"
    try:
        wait_until_ready(process, url, folder / "collector.log")
        yield Clinic(folder, key, url, python)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, warm_python: WarmPython) -> Iterator[Clinic]:
    """A collector process that all tests share."""
    base_model_folder(PACKAGED)  # unpacked on first use, with a bar on stderr: not while a doctor is examined
    with collecting(tmp_path_factory.mktemp("clinic"), new_key("bank"), warm_python) as clinic:
        yield clinic


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
    """The shared collector; whatever a test starts is stopped."""
    yield hospital
    hospital.stop()


@pytest.fixture
def elsewhere(hospital: Clinic, tmp_path: Path) -> Iterator[Clinic]:
    """Another collector that knows the same key and has a stream of its own."""
    with collecting(tmp_path, hospital.key, hospital.python) as other:
        yield other
        other.stop()


def broken(found: dict[str, Any]) -> dict[str, Any]:
    """The first broken hop."""
    hop: dict[str, Any] = next(one for one in found["hops"] if one["hop"] == found["first_broken"])
    return hop


def test_all_is_well(clinic: Clinic) -> None:
    """With every part running each hop is well, everything arrived, and the exit status is 0."""
    code, found = clinic.examine("--serving", clinic.serve())
    assert (code, found["well"], found["first_broken"]) == (0, True, None), found
    assert [hop["hop"] for hop in found["hops"]] == list(Hop)
    assert {hop["status"] for hop in found["hops"]} == {Status.OK}
    arrived = {name: is_there for hop in found["hops"] for name, is_there in hop["arrived"].items()}
    assert {"messages", "answer", "task", "user", "completion token ids", "log-probabilities", "release", "queue"} <= set(arrived)
    assert all(arrived.values())


def test_no_night_learns_from_what_the_doctor_sent(clinic: Clinic) -> None:
    """Its episode has the reserved task, whatever else it holds."""
    clinic.examine("--serving", clinic.serve())
    with SqliteStream(clinic.folder / "stream.db", partitions=12) as stream:
        manifest = freeze_whole_stream(stream, tenant="bank", now_ms=time.time_ns() // 1_000_000)
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
        ({"prompt": tuple(range(1, 2049))}, Hop.SELECTION, "of task triage it would be left out: prompt-too-long"),
    ],
)
def test_serving_broken_in_each_way_is_named(clinic: Clinic, manners: dict[str, Any], hop: Hop, says: str) -> None:
    """Whatever is wrong with serving is the first broken hop, with what to do; the hops before it are well."""
    wait_s = NEVER_COMES_S if hop is Hop.SERVER_SPAN else WAIT_S
    code, found = clinic.examine("--serving", clinic.serve(**manners), wait_s=wait_s)
    assert (code, found["first_broken"]) == (1, hop), found
    assert says in broken(found)["text"] and broken(found)["fix"]
    before = found["hops"][: list(Hop).index(hop)]
    assert {one["status"] for one in before} == {Status.OK}


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0])
def test_a_clock_that_is_wrong_is_named(clinic: Clinic, ahead_s: float) -> None:
    """By about how much and in which direction; the request itself takes a part of what is measured."""
    code, found = clinic.examine("--serving", clinic.serve(clock_s=ahead_s))
    assert (code, found["first_broken"]) == (1, Hop.CLOCKS), found
    said = re.search(r"serving ([+-]\d+\.\d) s", broken(found)["text"])
    assert said is not None and float(said[1]) == pytest.approx(ahead_s, abs=120.0)
    assert {one["status"] for one in found["hops"][: list(Hop).index(Hop.CLOCKS)]} == {Status.OK}


def test_serving_that_is_not_there(clinic: Clinic) -> None:
    """The outcome and the app's half of the episode are still checked; what needs serving is not."""
    code, found = clinic.examine()
    status = {hop["hop"]: hop["status"] for hop in found["hops"]}
    assert (code, found["first_broken"]) == (1, Hop.SERVING)
    assert status[Hop.OUTCOME_JOIN] == status[Hop.EPISODE] == Status.OK
    assert status[Hop.TOKENS] == status[Hop.JOIN] == Status.NOT_CHECKED


def test_a_trace_that_a_proxy_cuts_is_joined_by_response_id(clinic: Clinic) -> None:
    """A server's span in a trace of its own breaks nothing; the finding names it."""
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
    """A wrong file, a key of no tenant, a collector or a stream in another place."""
    port = int(clinic.collector.rpartition(":")[2])
    clinic.config("other.toml").write_text(text(clinic.key, port))
    code, found = clinic.examine("--config", str(clinic.config("other.toml")))
    assert (code, found["first_broken"]) == (1, hop), found
    assert says in broken(found)["text"] and broken(found)["fix"]


def test_a_collector_that_writes_elsewhere_is_named(clinic: Clinic) -> None:
    """Acknowledged is not enough: a night reads only what is in the configured stream."""
    port = int(clinic.collector.rpartition(":")[2])
    SqliteStream(clinic.folder / "empty.db", partitions=2).close()
    clinic.config("other.toml").write_text(settings(clinic.key, port, port, stream="empty.db"))
    _, found = clinic.examine("--config", str(clinic.config("other.toml")), "--serving", clinic.serve(), wait_s=NEVER_COMES_S)
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
    """What a new user is most likely to forget is checked first."""
    assert clinic.examine(NIGHTSCHOOL_API_KEY="")[1]["first_broken"] == Hop.KEY
    assert clinic.examine("--config", str(clinic.folder / "absent.toml"))[1]["first_broken"] == Hop.CONFIGURATION


def only_broken(found: dict[str, Any], hop: Hop) -> dict[str, Any]:
    """The first broken hop, which is `hop` and says what to do; all hops before it are well."""
    assert found["first_broken"] == hop, found
    assert {one["status"] for one in found["hops"][: list(Hop).index(hop)]} <= {Status.OK}
    named = broken(found)
    assert named["fix"]
    return named


@pytest.mark.parametrize(
    ("refuses", "status", "says"),
    [
        (lambda path, body: path == "/v1/traces", 503, "no acknowledgement within"),
        (lambda path, body: path == "/v1/traces" and bool(body), 413, "refused for good"),
    ],
    ids=["overloaded", "too large for a proxy"],
)
def test_spans_that_nobody_acknowledges(clinic: Clinic, refuses: Callable[[str, bytes], bool], status: int, says: str) -> None:
    """A collector that is ready but takes no spans breaks the hop of the acknowledgement, not that of the key."""
    proxy = clinic.between(lambda path, body: status if refuses(path, body) else (clinic.collector + path, body))
    _, found = clinic.examine("--collector", proxy, "--serving", clinic.serve())
    named = only_broken(found, Hop.ACKNOWLEDGEMENT)
    assert says in named["text"]


def test_content_capture_that_is_off(clinic: Clinic) -> None:
    """The variable by which instrumentations are told not to record texts is named."""
    variable = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    _, found = clinic.examine("--serving", clinic.serve(), **{variable: "NO_CONTENT"})
    named = only_broken(found, Hop.CONTENT)
    assert "messages, answer" in named["text"] and f"{variable} is NO_CONTENT" in named["fix"]


@pytest.mark.parametrize(
    ("attribute", "what"),
    [
        ("gen_ai.input.messages", "messages"),
        ("gen_ai.output.messages", "answer"),
        (names.TASK, "task"),
        (names.SUBJECT, "user"),
        (names.GEN_AI_CONVERSATION_ID, "conversation"),
    ],
)
def test_attributes_that_a_proxy_drops(clinic: Clinic, attribute: str, what: str) -> None:
    """A collector in between that deletes an attribute: what did not arrive is named, and nothing else."""

    def without(path: str, body: bytes) -> tuple[str, bytes]:
        if path == "/v1/traces":
            request = ExportTraceServiceRequest.FromString(body)
            for span in (span for part in request.resource_spans for scope in part.scope_spans for span in scope.spans):
                kept = [one for one in span.attributes if one.key != attribute]
                del span.attributes[:]
                span.attributes.extend(kept)
            body = request.SerializeToString()
        return clinic.collector + path, body

    _, found = clinic.examine("--collector", clinic.between(without), "--serving", clinic.serve())
    named = only_broken(found, Hop.CONTENT)
    assert named["text"] == f"not as sent: {what}" and "drops attributes" in named["fix"]


def test_a_collector_without_outcomes(clinic: Clinic) -> None:
    """As the OpenTelemetry Collector, which takes spans and has no such route."""
    proxy = clinic.between(lambda path, body: 404 if path == "/v1/outcomes" else (clinic.collector + path, body))
    _, found = clinic.examine("--collector", proxy, "--serving", clinic.serve())
    named = only_broken(found, Hop.OUTCOME)
    assert "1 of 1 outcomes were refused" in named["text"] and "OpenTelemetry Collector" in named["fix"]


def test_outcomes_that_go_to_another_collector(clinic: Clinic, elsewhere: Clinic) -> None:
    """They are durable there, but no night that reads this stream will ever see them."""

    def split(path: str, body: bytes) -> tuple[str, bytes]:
        return (elsewhere if path == "/v1/outcomes" else clinic).collector + path, body

    _, found = clinic.examine("--collector", clinic.between(split), "--serving", clinic.serve(), wait_s=NEVER_COMES_S)
    assert "acknowledged but are not in" in only_broken(found, Hop.OUTCOME_RECORD)["text"]


def test_a_user_who_was_forgotten(elsewhere: Clinic) -> None:
    """Nights erase the marked request of a forgotten user; when that is undone, the doctor finds all well again."""
    forget = [sys.executable, "-m", "nightschool", "forget", "--config", str(elsewhere.config()), "--tenant", "bank"]
    forget += ["--user", "nightschool-doctor"]
    url = elsewhere.serve()
    subprocess.run(forget, capture_output=True, check=True, timeout=120)
    named = only_broken(elsewhere.examine("--serving", url)[1], Hop.EPISODE)
    assert "erased-span" in named["text"] and "--user nightschool-doctor --undo" in named["fix"]
    subprocess.run([*forget, "--undo"], capture_output=True, check=True, timeout=120)
    assert elsewhere.examine("--serving", url)[0] == 0


@pytest.mark.parametrize("names_tenant", [True, False])
def test_spans_that_a_foreign_collector_stored(elsewhere: Clinic, names_tenant: bool) -> None:
    """Its records do not have our header: they make an episode only where their resource names the tenant."""

    def store(path: str, body: bytes) -> tuple[str, bytes] | int:
        if path != "/v1/traces" or not body:
            return elsewhere.collector + path, body
        request = ExportTraceServiceRequest.FromString(body)
        for part in request.resource_spans:
            kept = [one for one in part.resource.attributes if one.key != names.TENANT_ID or names_tenant]
            del part.resource.attributes[:]
            part.resource.attributes.extend(kept)
        key = request.resource_spans[0].scope_spans[0].spans[0].trace_id.hex().encode()
        with SqliteStream(elsewhere.folder / "stream.db", partitions=12) as stream:
            stream.append(names.TOPIC_SPANS, [Record(key, request.SerializeToString())])
        return 200

    code, found = elsewhere.examine("--collector", elsewhere.between(store), "--serving", elsewhere.serve())
    if names_tenant:
        assert code == 0, found
    else:
        named = only_broken(found, Hop.EPISODE)
        assert "record-without-tenant 1" in named["text"] and names.TENANT_ID in named["fix"]


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (f'"{RESPONSE_ID}"', '"chatcmpl-other"', "not joined to their episode: queue (outcome-without-trace 1)"),
        ('"Fine."', '"Quite fine."', "another text than was sent: queue"),
    ],
    ids=["another target", "another text"],
)
def test_an_outcome_that_is_rewritten(clinic: Clinic, ours: str, theirs: str, says: str) -> None:
    """An outcome about an unknown response is in the stream but on no episode; one with another text is found too."""

    def rewrite(path: str, body: bytes) -> tuple[str, bytes]:
        return clinic.collector + path, body.replace(ours.encode(), theirs.encode()) if path == "/v1/outcomes" else body

    _, found = clinic.examine("--collector", clinic.between(rewrite), "--serving", clinic.serve())
    assert only_broken(found, Hop.OUTCOME_JOIN)["text"] == says


def test_every_rubric_gets_its_outcomes(clinic: Clinic) -> None:
    """Rubrics of several tasks and several outcomes are all examined; none is broken for lack of an outcome."""
    (clinic.folder / "two.toml").write_text(
        'task = "answers"\n[[items]]\nname = "kept"\nkind = "outcome"\noutcome = "answer"\n'
        '[[items]]\nname = "well"\nkind = "outcome"\noutcome = "thumb"\n'
    )
    text = clinic.config().read_text().replace('rubrics = ["r.toml"]', 'rubrics = ["r.toml", "two.toml"]')
    clinic.config("two-rubrics.toml").write_text(text)
    code, found = clinic.examine("--config", str(clinic.config("two-rubrics.toml")), "--serving", clinic.serve())
    assert code == 0, found
    said = {hop["hop"]: hop["text"] for hop in found["hops"]}
    assert said[Hop.OUTCOME] == "durable: answer, queue, thumb" and "answers, triage" in said[Hop.SELECTION]


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
        str(WAIT_S),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "BROKEN  serving" in done.stdout and "do: start it: nightschool serve" in done.stdout
    assert done.stdout.rstrip().endswith("the first broken hop is: serving")
    assert clinic.key not in done.stdout + done.stderr
