"""More requests than the collector has memory for: refused ones are sent again, acknowledged ones are never lost."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nightschool.keys import hash_key
from nightschool.stream import open_stream

SENDERS, BATCHES, SPANS, CONTENT = 8, 3, 100, "x" * 4096
OUTCOME = {"target": {"response_id": "r"}, "name": "n", "value": 1, "source": {"kind": "code"}}


@pytest.fixture
def collector_process(tmp_path: Path, unused_port: int) -> Iterator[psutil.Process]:
    """A collector whose budget has room for two of the batches at a time."""
    path = tmp_path / "nightschool.toml"
    limits = "max_body_mib = 1\nmax_in_flight_mib = 1\nmax_in_flight_per_tenant_mib = 1\n"
    path.write_text(
        f'[stream]\nurl = "sqlite:stream.db"\n[collector]\nport = {unused_port}\n{limits}'
        f'[tenants.acme]\nkey_sha256 = ["{hash_key("k")}"]\n'
    )
    command = [sys.executable, "-m", "nightschool_collector", "--config", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("collecting on")
    yield psutil.Process(process.pid)
    process.kill()
    process.communicate()


def batch_of_spans() -> tuple[ReadableSpan, ...]:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("tests")
    for _ in range(SPANS):
        tracer.start_span("chat m", attributes={"gen_ai.output.messages": CONTENT}).end()
    return kept.get_finished_spans()


def test_refused_batches_are_sent_again_until_they_are_stored(
    collector_process: psutil.Process, tmp_path: Path, unused_port: int
) -> None:
    """Eight official exporters, room for two batches: some get 503, and in the end every span is stored.

    Outcomes are accepted all the time, and the collector's memory does not grow with what is sent.
    """
    url = f"http://127.0.0.1:{unused_port}"
    before = collector_process.memory_info().rss

    def send(number: int) -> set[int]:
        exporter = OTLPSpanExporter(f"{url}/v1/traces", headers={"authorization": "Bearer k"})
        sent = set()
        for _ in range(BATCHES):
            spans = batch_of_spans()
            while exporter.export(spans) is not SpanExportResult.SUCCESS:
                pass  # its 10 s were over; what is not acknowledged the sender must keep
            sent |= {span.context.span_id for span in spans}
        exporter.shutdown()
        return sent

    with ThreadPoolExecutor(SENDERS) as pool, httpx.Client(base_url=url, headers={"authorization": "Bearer k"}) as client:
        outcomes = [client.post("/v1/outcomes", json=OUTCOME).status_code]  # the stream's file exists from now on
        with closing(sqlite3.connect(tmp_path / "stream.db", isolation_level=None)) as disk:
            disk.execute("BEGIN IMMEDIATE")  # nothing can be stored until a request was refused
            senders = [pool.submit(send, number) for number in range(SENDERS)]
            while not num_refused(client):
                time.sleep(0.01)
            disk.execute("ROLLBACK")
        highest = 0
        while not all(sender.done() for sender in senders):
            outcomes.append(client.post("/v1/outcomes", json=OUTCOME).status_code)
            highest = max(highest, collector_process.memory_info().rss)
        acknowledged = set().union(*(sender.result() for sender in senders))

    assert set(outcomes) == {202}
    assert len(acknowledged) == SENDERS * BATCHES * SPANS
    assert stored_span_ids(tmp_path) >= acknowledged
    assert highest - before < 100 << 20


def num_refused(client: httpx.Client) -> int:
    found = re.search(r'refused_requests_total\{signal="traces",reason="pressure"\} (\d+)', client.get("/metrics").text)
    assert found is not None
    return int(found[1])


def stored_span_ids(folder: Path) -> set[int]:
    with open_stream(f"sqlite:{folder / 'stream.db'}") as stream:
        ends = stream.end_offsets("ns.otlp_spans")
        records: list[Any] = [record for p in ends for record in stream.read("ns.otlp_spans", p, 0, ends[p])]
    found = set()
    for record in records:
        for group in ExportTraceServiceRequest.FromString(record.value).resource_spans:
            found |= {int.from_bytes(span.span_id, "big") for scope in group.scope_spans for span in scope.spans}
    return found
