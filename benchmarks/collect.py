"""Measures capture: the tracer in an app, the collector at full load and at twice that, and the building of episodes.

`make bench NAME=collect`. Everything is real: the `openai` client, the collector as a process, Apache Kafka of
`deploy/kafka`, the official OpenTelemetry Collector (built once, with Go) beside ours in the same run, and the official
Python exporter. The last line is a JSON object:

`sdk_us_p50`, `sdk_us_p99`    microseconds that a request with one call of the `openai` client and 8 KB of content
                              spends in the tracer, on the app's thread, while the exporter's thread works
`spans_per_cpu_s_kafka`       spans of 2.3 KB, each a trace of its own, that Kafka acknowledged, for each CPU second of
                              the collector's process; one connection
`spans_per_cpu_s_otelcol`     the same of the official collector, without its queue
`ratio_vs_otelcol`            ours divided by theirs
`spans_per_s_sqlite`          spans a second into SQLite; one connection
`ack_ms_p50`, `ack_ms_p99`    milliseconds until Kafka acknowledged 128 spans; one connection that never rests
`overload_acked_lost`         spans that were acknowledged and are not in the stream, with twice as many official
                              exporters as the collector admits
`overload_rss_mb`             the collector's peak memory meanwhile
`episodes_per_s`              episodes of a million spans in SQLite, every fourth with an outcome: read, joined and
                              iterated, without redaction
`episodes_peak_mb`            peak memory of that process (`episodes_peak_mb_small` in the file: for a tenth of the day)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import load  # noqa: E402 - run as a script
from nightschool.keys import hash_key  # noqa: E402

TENANT, KEY = "acme", "ns-acme-benchmark"
MODEL_S = 0.002
"""How long the simulated model takes to answer. The exporter's thread works meanwhile, as in an app."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much work each part gets."""

    requests: int
    flood_s: float
    rounds: int
    overload_s: float
    episodes: int


FULL = Size(requests=3000, flood_s=8.0, rounds=2, overload_s=60.0, episodes=1_000_000)
QUICK = Size(requests=300, flood_s=2.0, rounds=1, overload_s=6.0, episodes=20_000)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# --- what a request pays ------------------------------------------------------------------------------------------------
def run_model() -> None:
    """A process with a simulated model and a collector that accepts everything; prints their addresses."""
    from nightschool.testing import Collector

    answer = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": load.texts(1, seed=7)[0]}}
            ],
            "usage": {"prompt_tokens": 1800, "completion_tokens": 200, "total_tokens": 2000},
        }
    ).encode()

    class Model(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(MODEL_S)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.daemon_threads = True
    with Collector() as collector:
        print(json.dumps([f"http://127.0.0.1:{server.server_port}/v1", collector.endpoint]), flush=True)
        server.serve_forever()


def run_sdk(size: Size) -> dict[str, Any]:
    """Time that each request spends in the tracer; and, as a check, whole requests with and without it, in turns."""
    import openai

    import nightschool
    from nightschool.sdk.openai import instrument

    child = subprocess.Popen([sys.executable, __file__, "--part", "model"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    model, collector = json.loads(child.stdout.readline())
    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent += time.perf_counter() - begun

        return run

    words = load.texts(7, seed=1)
    roles = ("system", "user", "assistant", "user", "assistant", "user", "user")
    messages: list[Any] = [
        {"role": role, "content": text} for role, text in zip(roles, words, strict=True)
    ]  # 7 KB, and 1 KB back
    try:
        client = openai.OpenAI(base_url=model, api_key="k", max_retries=0)

        def ask() -> None:
            client.chat.completions.create(model="m", messages=messages, temperature=0.5, max_tokens=256)

        def traced(number: int) -> None:
            nonlocal spent
            begun = time.perf_counter()
            request = nightschool.request(task="triage", user=f"user-{number % 100}", conversation=f"c{number}")
            request.__enter__()
            spent += time.perf_counter() - begun
            ask()
            begun = time.perf_counter()
            request.__exit__(None, None, None)
            spent += time.perf_counter() - begun

        def by_hand(number: int, *, model_s: float) -> None:
            nonlocal spent
            begun = time.perf_counter()
            request = nightschool.request(task="triage", user=f"user-{number % 100}", conversation=f"c{number}").__enter__()
            call = nightschool.model_call("m", messages, temperature=0.5, max_tokens=256)
            _ = call.headers
            spent += time.perf_counter() - begun
            if model_s:
                time.sleep(model_s)
            begun = time.perf_counter()
            call.answer(words[0], response_id="r", input_tokens=1800, output_tokens=200)
            call.end()
            request.__exit__(None, None, None)
            spent += time.perf_counter() - begun

        recorder, nobody = (
            nightschool.configure(collector, TENANT, api_key=KEY),
            nightschool.Client("", "", api_key="", enabled=False),
        )
        at_work = [nobody]
        # The two places where the instrumentation works: before the client sends, and after it has the answer.
        instrument.Instrumentation.begin = timed(instrument.Instrumentation.begin)  # type: ignore[method-assign]
        instrument.Recording.finish = timed(instrument.Recording.finish)  # type: ignore[method-assign]
        instrument.instrument(lambda: at_work[0])
        figures: dict[str, list[float]] = {"openai": [], "by_hand": [], "whole_with": [], "whole_without": []}
        for number in range(size.requests + 100):
            at_work[0] = nobody
            begun = time.perf_counter()
            ask()
            without = time.perf_counter() - begun
            at_work[0] = recorder
            spent, begun = 0.0, time.perf_counter()
            traced(number)
            whole, openai_s = time.perf_counter() - begun, spent
            spent = 0.0
            by_hand(number, model_s=MODEL_S)
            if number >= 100:  # imports and caches are warm
                for name, seconds in zip(figures, (openai_s, spent, whole, without), strict=True):
                    figures[name].append(1e6 * seconds)
        back_to_back = []
        for number in range(size.requests):
            spent = 0.0
            by_hand(number, model_s=0.0)
            back_to_back.append(1e6 * spent)
        assert nightschool.flush(60)
        stats = nightschool.stats()
        assert stats.spans.sent == 6 * size.requests + 400 and not stats.internal_errors, stats
    finally:
        child.kill()
        child.wait()
    result = {
        f"sdk_{'' if name == 'openai' else 'by_hand_'}us_{label}": round(quantile(figures[name], share), 1)
        for name in ("openai", "by_hand")
        for label, share in (("p50", 0.5), ("p99", 0.99))
    }
    # The same without a wait between requests: the processor's caches stay warm, so this is the best case.
    result["sdk_back_to_back_us_p50"] = round(quantile(back_to_back, 0.5), 1)
    result["sdk_back_to_back_us_p99"] = round(quantile(back_to_back, 0.99), 1)
    added = [a - b for a, b in zip(figures["whole_with"], figures["whole_without"], strict=True)]
    return {**result, "sdk_whole_request_difference_us_p50": round(statistics.median(added), 1)}


# --- collectors ---------------------------------------------------------------------------------------------------------
def free_ports(count: int) -> list[int]:
    from examples.helpdesk.servers import free_ports

    return free_ports(count)


@contextlib.contextmanager
def our_collector(folder: Path, stream_url: str, **settings: Any) -> Iterator[tuple[str, int]]:
    """The address and the process id of our collector, writing to `stream_url`."""
    from examples.helpdesk.servers import Server

    port = free_ports(1)[0]
    lines = [
        f'[stream]\nurl = "{stream_url}"\n[collector]\nport = {port}',
        *(f"{name} = {value}" for name, value in settings.items()),
    ]
    config = folder / f"nightschool-{port}.toml"
    config.write_text("\n".join([*lines, f'[tenants.{TENANT}]\nkey_sha256 = ["{hash_key(KEY)}"]', ""]), encoding="utf-8")
    with Server("collect", config, f"http://127.0.0.1:{port}/healthz", folder / f"collector-{port}.log") as server:
        server.wait_ready(60)
        yield f"http://127.0.0.1:{port}", server._process.pid


_OTELCOL = """\
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}", max_request_body_size: 67108864}}}}}}}}
exporters:
  kafka:
    brokers: ["{brokers}"]
    traces: {{topic: {topic}, encoding: otlp_proto}}
    partition_traces_by_id: true
    producer: {{required_acks: -1, compression: zstd, max_message_bytes: 8388608, allow_auto_topic_creation: false}}
    sending_queue: {{enabled: false}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [kafka]}}}}
"""
"""Only what is measured: no authentication and no tenant, which ours has in addition. 200 means that Kafka has it."""


@contextlib.contextmanager
def official_collector(folder: Path, brokers: str) -> Iterator[tuple[str, int]]:
    """The address and the process id of the official collector, writing to the same Kafka."""
    from benchmarks.otelcol import run_otelcol
    from nightschool.stream import open_stream

    port = free_ports(1)[0]
    with open_stream(f"kafka://{brokers}") as stream:
        stream.create_topic("otelcol.spans", partitions=12)
    config = folder / "otelcol.yaml"
    config.write_text(_OTELCOL.format(port=port, brokers=brokers, topic="otelcol.spans"), encoding="utf-8")
    url = f"http://127.0.0.1:{port}"
    with run_otelcol(config, folder, ready_url=f"{url}/v1/traces") as process:
        yield url, process.pid


@contextlib.contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """A broker's address."""
    from tests.conftest import KafkaBroker, _kafka_jars

    (folder / "kafka").mkdir()
    broker = KafkaBroker(_kafka_jars(), folder / "kafka")
    try:
        broker.start()
        yield broker.bootstrap
    finally:
        broker.kill()


@dataclass(slots=True)
class Taken:
    """What a collector stored, and how fast."""

    spans_per_s: float
    spans_per_cpu_s: float
    ack_ms_p50: float
    ack_ms_p99: float


def measure(url: str, pid: int, requests: list[bytes], *, connections: int, seconds: float) -> Taken:
    """Flood a collector for `seconds`. Its CPU time is read half a second later, when work that it put off is done."""
    before = load.cpu_s(pid)
    result = load.flood(url, KEY, requests, connections=connections, seconds=seconds)
    time.sleep(0.5)
    used_s = load.cpu_s(pid) - before
    acks = result.ack_ms
    return Taken(result.num_spans / result.wall_s, result.num_spans / used_s, quantile(acks, 0.5), quantile(acks, 0.99))


def run_collectors(size: Size, folder: Path, brokers: str) -> dict[str, Any]:
    """Ours and the official one into the same Kafka, in turns; then ours into SQLite."""
    requests = load.bodies(8, tenant=TENANT)
    taken: dict[tuple[str, int], list[Taken]] = {}
    with our_collector(folder, f"kafka://{brokers}") as ours, official_collector(folder, brokers) as theirs:
        for url, pid in (ours, theirs):
            measure(url, pid, requests, connections=1, seconds=1)  # connections to every partition, warm caches
        for _ in range(size.rounds):
            for connections in (1, 8):
                for name, (url, pid) in (("kafka", ours), ("otelcol", theirs)):
                    found = measure(url, pid, requests, connections=connections, seconds=size.flood_s)
                    taken.setdefault((name, connections), []).append(found)
                    print(f"{name}, {connections} connections: {found}", flush=True)
    with our_collector(folder, f"sqlite:{folder}/flood.db") as (url, pid):
        for connections in (1, 8):
            found = measure(url, pid, requests, connections=connections, seconds=size.flood_s)
            taken["sqlite", connections] = [found]
            print(f"sqlite, {connections} connections: {found}", flush=True)
    (folder / "flood.db").unlink()

    def best(name: str, figure: str, connections: int = 1) -> float:
        return round(float(statistics.median(getattr(one, figure) for one in taken[name, connections])), 1)

    result = {
        "spans_per_cpu_s_kafka": best("kafka", "spans_per_cpu_s"),
        "spans_per_cpu_s_otelcol": best("otelcol", "spans_per_cpu_s"),
        "ratio_vs_otelcol": round(best("kafka", "spans_per_cpu_s") / best("otelcol", "spans_per_cpu_s"), 3),
        "spans_per_s_sqlite": best("sqlite", "spans_per_s"),
        "ack_ms_p50": best("kafka", "ack_ms_p50"),
        "ack_ms_p99": best("kafka", "ack_ms_p99"),
    }
    figures = ("spans_per_s", "spans_per_cpu_s", "ack_ms_p50", "ack_ms_p99")
    every = {f"{name}_{connections}": {f: best(name, f, connections) for f in figures} for name, connections in taken}
    return {**result, "collectors": every}


# --- twice what it admits -----------------------------------------------------------------------------------------------
LET_IN_MIB = 8


def run_overload(size: Size, folder: Path, brokers: str) -> dict[str, Any]:
    """Official exporters that together offer twice as many bytes as the collector admits, all the time."""
    from nightschool.stream import open_stream

    requests = 2 * (LET_IN_MIB << 20) // (load.SPANS_PER_REQUEST * 2300)
    stream_url = f"kafka://{brokers}"
    with open_stream(stream_url) as stream:
        before = stream.end_offsets("ns.otlp_spans")
    settings = dict.fromkeys(("max_in_flight_mib", "max_in_flight_per_tenant_mib", "max_body_mib"), LET_IN_MIB)
    with our_collector(folder, stream_url, **settings) as (url, pid):
        command = [sys.executable, __file__, "--part", "press", "--url", url, "--seconds", str(size.overload_s)]
        done = subprocess.run([*command, "--threads", str(requests)], stdout=subprocess.PIPE, check=True)
        pressed = json.loads(done.stdout.splitlines()[-1])
        rss_mb = load.peak_rss_mb(pid)
        refused = _num_refused(url)
    acked: list[int] = pressed["acked"]
    found: dict[int, int] = {}
    with open_stream(stream_url) as stream:
        for partition, end in stream.end_offsets("ns.otlp_spans").items():
            for record in stream.read("ns.otlp_spans", partition, before.get(partition, 0), end):
                trace = int(record.key, 16)
                batch = (trace >> 64) - 1
                found[batch] = found.get(batch, 0) | 1 << (trace & 0xFFFF)
    whole = (1 << load.SPANS_PER_REQUEST) - 1
    lost = sum((whole & ~found.get(batch, 0)).bit_count() for batch in acked)
    return {
        "overload_acked_lost": lost,
        "overload_rss_mb": round(rss_mb),
        "overload": {
            "acked_spans": len(acked) * load.SPANS_PER_REQUEST,
            "refused_requests": refused,
            "given_up_by_the_exporter_and_handed_over_again": pressed["num_given_up"],
            "exporters": requests,
            "let_in_mib": LET_IN_MIB,
            "seconds": round(pressed["wall_s"], 1),
        },
    }


def _num_refused(url: str) -> int:
    """Requests that were answered 503, by the collector's own count."""
    import urllib.request

    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if "refused" in line and not line.startswith("#"))


def run_press(url: str, *, seconds: float, threads: int) -> dict[str, Any]:
    result = load.press(url, KEY, num_threads=threads, seconds=seconds)
    return {"acked": result.acked, "num_given_up": result.num_given_up, "wall_s": result.wall_s}


# --- episodes -----------------------------------------------------------------------------------------------------------
START_NS = 1_767_225_600 * 10**9
_PLACES = (b"T" * 16, b"S" * 8, START_NS.to_bytes(8, "little"), b"chatcmpl-#########", b"user-####")
"""The bytes that differ between the spans of a day, as they are in an encoded span; `write_day` replaces them."""


def write_day(path: Path, num_spans: int) -> None:
    """Write a day into a SQLite stream: spans of 2.3 KB by a thousand users, each a trace; every fourth has an outcome.

    A thousand spans are encoded once. Each span of the day is a copy of one, with its own ids, time and user.
    """
    from nightschool import semconv as names
    from nightschool.outcomes.record import Outcome, to_logs_request
    from nightschool.stream.base import Record
    from nightschool.stream.sqlite import SqliteStream

    words = load.texts(2000, seed=3)
    encoded = [_encoded_span(*pair) for pair in zip(words[::2], words[1::2], strict=True)]
    headers = {names.HEADER_TENANT: TENANT.encode()}

    def span(number: int) -> Record:
        value, one = encoded[number % len(encoded)], number + 1
        own = (
            one.to_bytes(16, "big"),
            one.to_bytes(8, "big"),
            (START_NS + number * 10**6).to_bytes(8, "little"),
            b"chatcmpl-%09d" % number,
            b"user-%04d" % (number % 1000),
        )
        for place, content in zip(_PLACES, own, strict=True):
            value = value.replace(place, content, 1)
        return Record(f"{one:032x}".encode(), value, headers)

    def outcome(number: int) -> Record:
        said = Outcome(
            name="queue",
            target={"response_id": f"chatcmpl-{number:09}"},
            value="card",
            source_id="ann",
            event_id=f"e{number}",
        )
        value = to_logs_request(said, tenant=TENANT, received_ns=START_NS + 10**14).SerializeToString()
        return Record(said.key, value, headers)

    with SqliteStream(path, partitions=12) as stream:
        for first in range(0, num_spans, 2000):
            numbers = range(first, min(first + 2000, num_spans))
            stream.append(names.TOPIC_SPANS, [span(number) for number in numbers])
            stream.append(names.TOPIC_OUTCOMES, [outcome(number) for number in numbers if number % 4 == 0])


def _encoded_span(question: str, answer: str) -> bytes:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from nightschool import semconv as names

    trace, span, _, response, user = _PLACES
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key=names.TENANT_ID).value.string_value = TENANT
    made = resource.scope_spans.add().spans.add(trace_id=trace, span_id=span, name="chat m", kind=3)
    made.start_time_unix_nano, made.end_time_unix_nano = START_NS, START_NS + 10**9
    for name, value in (
        (names.SPAN_SIDE, "app"),
        (names.TASK, "triage"),
        (names.SUBJECT, user.decode()),
        (names.GEN_AI_OPERATION_NAME, "chat"),
        (names.GEN_AI_REQUEST_MODEL, "m"),
        (names.GEN_AI_RESPONSE_ID, response.decode()),
        (names.GEN_AI_INPUT_MESSAGES, load.content("user", question)),
        (names.GEN_AI_OUTPUT_MESSAGES, load.content("assistant", answer)),
    ):
        made.attributes.add(key=name).value.string_value = value
    return request.SerializeToString()


def run_episodes(path: Path) -> dict[str, Any]:
    """Freeze the day, build its episodes and read each; runs in a process of its own, whose memory is watched."""
    from nightschool.stream.sqlite import SqliteStream
    from nightschool_nightly.episodes.store import EpisodeStore
    from nightschool_nightly.freeze.freeze import freeze_whole_stream

    with SqliteStream(path, partitions=12) as stream, tempfile.TemporaryDirectory(dir=path.parent) as work:
        manifest = freeze_whole_stream(stream, tenant=TENANT)
        begun = time.perf_counter()
        store = EpisodeStore(Path(work))
        try:
            store.build(stream, manifest)
            built_s = time.perf_counter() - begun
            episodes = outcomes = 0
            for item in store.episodes(TENANT):
                episodes += 1
                outcomes += len(item.episode.outcomes)
        finally:
            store.close()
        wall_s = time.perf_counter() - begun
    return {
        "episodes": episodes,
        "outcomes": outcomes,
        "episodes_per_s": round(episodes / wall_s),
        "build_s": round(built_s, 1),
        "read_s": round(wall_s - built_s, 1),
    }


def run_days(size: Size, folder: Path) -> dict[str, Any]:
    """A whole day and a tenth of one: the figures of the whole day, and the peak memory of both."""
    days = {}
    for name, num_spans in (("small", size.episodes // 10), ("whole", size.episodes)):
        path = folder / f"{name}.db"
        write_day(path, num_spans)
        days[name] = in_own_process("episodes", "--day", str(path))
        assert days[name]["episodes"] == num_spans and days[name]["outcomes"] == -(-num_spans // 4), days
        print(f"episodes, {name} day: {days[name]}", flush=True)
        for left in folder.glob(f"{name}.db*"):
            left.unlink()
    whole, small = days["whole"], days["small"]
    return {
        "episodes_per_s": whole["episodes_per_s"],
        "episodes_peak_mb": whole["peak_mb"],
        "episodes_peak_mb_small": small["peak_mb"],
        "episodes": days,
    }


# --- all of it ----------------------------------------------------------------------------------------------------------
def in_own_process(part: str, *arguments: str) -> dict[str, Any]:
    """Run one part in a fresh process: its last line is its result, and the peak memory with its children is added."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen([sys.executable, __file__, "--part", part, *arguments], stdout=output)
        peak_mb = 0.0
        while process.poll() is None:
            peak_mb = max(peak_mb, load.rss_mb(process.pid))
            time.sleep(0.1)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, part)
        output.seek(0)
        result: dict[str, Any] = json.loads(output.read().strip().splitlines()[-1])
    return {**result, "peak_mb": round(peak_mb)}


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


RESULTS = (
    "sdk_us_p50",
    "sdk_us_p99",
    "spans_per_cpu_s_kafka",
    "spans_per_cpu_s_otelcol",
    "ratio_vs_otelcol",
    "spans_per_s_sqlite",
    "ack_ms_p50",
    "ack_ms_p99",
    "overload_acked_lost",
    "overload_rss_mb",
    "episodes_per_s",
    "episodes_peak_mb",
)


def run_all(size: Size, *, quick: bool) -> int:
    """Every part, one after the other; 1 when something acknowledged was lost."""
    from importlib.metadata import version

    figures = in_own_process("sdk", *(["--quick"] if quick else []))
    del figures["peak_mb"]
    print(f"tracer: {figures}", flush=True)
    with tempfile.TemporaryDirectory(prefix="nightschool-bench-") as name:
        folder = Path(name)
        with kafka(folder) as brokers:
            figures |= run_collectors(size, folder, brokers)
            figures |= run_overload(size, folder, brokers)
            print(f"overload: {figures['overload']}", flush=True)
        figures |= run_days(size, folder)
    result = {name: figures[name] for name in RESULTS} | {"hardware": hardware()}
    if not quick:
        packages = ("opentelemetry-sdk", "protobuf", "kafka-python", "confluent-kafka", "duckdb", "openai")
        details = {**result, **figures, "versions": {}}
        for package in packages:
            with contextlib.suppress(ImportError):
                details["versions"][package] = version(package)
        (ROOT / "benchmarks" / "collect.json").write_text(json.dumps(details, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 1 if figures["overload_acked_lost"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a little of every part, to see that all of it works; writes no file"
    )
    parser.add_argument("--part", choices=("model", "sdk", "press", "episodes"), help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--day", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    match arguments.part:
        case None:
            return run_all(size, quick=arguments.quick)
        case "model":
            run_model()
        case "sdk":
            print(json.dumps(run_sdk(size)))
        case "press":
            print(json.dumps(run_press(arguments.url, seconds=arguments.seconds, threads=arguments.threads)))
        case "episodes":
            print(json.dumps(run_episodes(arguments.day)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
