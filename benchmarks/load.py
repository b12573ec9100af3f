"""Load on a collector: spans of 2.3 KB with real texts, each a trace of its own, and two ways to send them.

`flood` keeps some connections busy with bodies that are made beforehand, so that nearly all of the measured time is the
collector's. `press` is the official Python exporter in many threads. It is slower, and does what an app does: encode,
send, and try again after a 503.
"""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = ROOT.parent / "shared" / "data" / "banking77" / "train.csv"
SPANS_PER_REQUEST = 128
TEXT_BYTES = 1000
"""The size of each of the two contents of a span; the span then has about 2.3 KB."""


def texts(count: int, *, seed: int) -> list[str]:
    """Texts of `TEXT_BYTES` made of real messages to a help desk: the large set where there is one, else the example."""
    if MESSAGES.is_file():
        with MESSAGES.open(encoding="utf-8", newline="") as lines:
            messages = [row["text"] for row in csv.DictReader(lines)]
    else:
        files = sorted((ROOT / "examples" / "helpdesk").glob("*.jsonl"))
        messages = [json.loads(line)["text"] for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    chosen = random.Random(seed)
    made = []
    for _ in range(count):
        text = ""
        while len(text) < TEXT_BYTES:
            text += chosen.choice(messages).strip() + " "
        made.append(text[:TEXT_BYTES])
    return made


def content(role: str, text: str) -> str:
    """A GenAI messages attribute with one message."""
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


def bodies(count: int, *, tenant: str) -> list[bytes]:
    """`count` OTLP requests of `SPANS_PER_REQUEST` spans, each span a trace of its own."""
    made = []
    for number in range(count):
        request, ids = ExportTraceServiceRequest(), random.Random(number)
        resource = request.resource_spans.add()
        resource.resource.attributes.add(key="nightschool.tenant.id").value.string_value = tenant
        scope = resource.scope_spans.add()
        words = texts(2 * SPANS_PER_REQUEST, seed=number)
        for index in range(SPANS_PER_REQUEST):
            span = scope.spans.add(trace_id=ids.randbytes(16), span_id=ids.randbytes(8), name="chat m", kind=3)
            span.start_time_unix_nano, span.end_time_unix_nano = 10**18, 10**18 + 10**9
            for name, value in (
                ("gen_ai.operation.name", "chat"),
                ("gen_ai.input.messages", content("user", words[2 * index])),
                ("gen_ai.output.messages", content("assistant", words[2 * index + 1])),
            ):
                span.attributes.add(key=name).value.string_value = value
        made.append(request.SerializeToString())
    return made


# --- as fast as it goes -------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Flood:
    """What a flood measured."""

    num_spans: int = 0
    wall_s: float = 0.0
    ack_ms: list[float] = field(default_factory=list)
    """From the first byte sent to the acknowledgement, request by request."""


def flood(url: str, key: str, requests: list[bytes], *, connections: int, seconds: float) -> Flood:
    """Send `requests` again and again on each of the connections, one after the acknowledgement of the one before."""
    address, result, lock = urlsplit(url), Flood(), threading.Lock()
    headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {key}"}
    started = time.perf_counter()

    def run(first: int) -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        waits, number = [], first
        while (begun := time.perf_counter()) < started + seconds:
            connection.request("POST", "/v1/traces", requests[number % len(requests)], headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status == 503:  # sent again, as the protocol asks; only acknowledged requests count
                time.sleep(float(response.headers.get("Retry-After", 1)))
                continue
            if response.status != 200:
                raise RuntimeError(f"the collector answered {response.status}: {answer[:200]!r}")
            waits.append(1e3 * (time.perf_counter() - begun))
            number += connections
        connection.close()
        with lock:
            result.ack_ms += waits

    threads = [threading.Thread(target=run, args=(first,)) for first in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.wall_s = time.perf_counter() - started
    result.num_spans = SPANS_PER_REQUEST * len(result.ack_ms)
    return result


# --- more than it admits ------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Press:
    """What `press` measured: batches by number, from which every trace id follows."""

    acked: list[int] = field(default_factory=list)
    num_given_up: int = 0
    """How often the exporter gave a batch up; it then got the same spans again, until they were acknowledged."""
    wall_s: float = 0.0


def trace_id(batch: int, index: int) -> int:
    """The trace id of one span; batch and place can be read from it, so that a reader knows which span it is."""
    return batch + 1 << 64 | index


def press(url: str, key: str, *, num_threads: int, seconds: float) -> Press:
    """Let official exporters send batch after batch; each goes on after the end until its last one is acknowledged."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it logs every 503, and this run provokes them
    result, lock, started = Press(), threading.Lock(), time.perf_counter()
    words = texts(2 * SPANS_PER_REQUEST, seed=0)
    contents = [
        {"gen_ai.input.messages": content("user", words[2 * i]), "gen_ai.output.messages": content("assistant", words[2 * i + 1])}
        for i in range(SPANS_PER_REQUEST)
    ]
    resource = Resource.create({})

    def spans(batch: int) -> Iterator[ReadableSpan]:
        for index, attributes in enumerate(contents):
            context = SpanContext(trace_id(batch, index), index + 1, is_remote=False, trace_flags=TraceFlags(1))
            yield ReadableSpan(
                "chat m", context, None, resource, attributes, kind=SpanKind.CLIENT, start_time=10**18, end_time=10**18 + 1
            )

    def run(first: int) -> None:
        exporter = OTLPSpanExporter(endpoint=f"{url}/v1/traces", headers={"Authorization": f"Bearer {key}"}, timeout=30)
        batch = first
        while time.perf_counter() < started + seconds:
            handed = list(spans(batch))
            while exporter.export(handed) is not SpanExportResult.SUCCESS:
                with lock:
                    result.num_given_up += 1
            with lock:
                result.acked.append(batch)
            batch += num_threads
        exporter.shutdown()  # type: ignore[no-untyped-call]

    threads = [threading.Thread(target=run, args=(first,)) for first in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.wall_s = time.perf_counter() - started
    return result


# --- watching a process -------------------------------------------------------------------------------------------------
def process_tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of a process and all its descendants."""
    total = 0
    for one in process_tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """The memory that a process and its descendants hold now; a page that they share counts for each."""
    total = 0
    for one in process_tree(pid):
        with contextlib.suppress(OSError, IndexError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_rss_mb(pid: int) -> float:
    """The peak memory of a process and of each of its descendants, added up."""
    total_kb = 0
    for one in process_tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
            total_kb += next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    return total_kb / 1024
