"""The official OpenTelemetry Collector in place of ours: the same traffic gives the same records and episodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.otelcol import run_otelcol, why_not_buildable
from nightschool import semconv
from nightschool.keys import hash_key
from nightschool.outcomes.record import parse_outcome, to_logs_request
from nightschool.stream import StoredRecord, Stream, open_stream
from nightschool.stream.kafka_topics import TOPICS
from nightschool.testing import START_NS
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.freeze.freeze import freeze_whole_stream

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
TENANT, KEY = "acme", "ns-acme-key"
NUM_TRACES = 40
RATER = "0123456789abcdef" * 2  # a pseudonym, as the SDK sends it; only our collector would replace a raw id


class Side(NamedTuple):
    """One collector and what its Kafka holds."""

    url: str
    stream: Stream


@pytest.fixture(scope="module")
def sides(
    kafka_jars: Path, start_broker: Callable[..., AbstractContextManager[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Side, Side]]:
    """Ours and the official one, each with a Kafka of its own, after the same traffic."""
    if reason := why_not_buildable():
        pytest.fail(f"{reason}, and CI must run these tests") if os.environ.get("CI") == "true" else pytest.skip(reason)
    with ExitStack() as stack:
        sides = []
        for run in (run_ours, run_official):
            folder = tmp_path_factory.mktemp(run.__name__)
            broker = stack.enter_context(start_broker(kafka_jars, folder))
            stream = stack.enter_context(open_stream(f"kafka://{broker.bootstrap}"))
            for topic in TOPICS:
                stream.create_topic(topic, partitions=12)
            sides.append(Side(stack.enter_context(run(broker.bootstrap, folder)), stream))
        spans, logs = traffic_of_spans(), [*outcome_requests(), plain_logs()]
        for side in sides:
            send(side.url, spans, logs)
        yield sides[0], sides[1]


# --- the two collectors -----------------------------------------------------------------------------------------------
@contextmanager
def run_ours(bootstrap: str, folder: Path) -> Iterator[str]:
    port = free_port()
    config = folder / "nightschool.toml"
    config.write_text(
        f'[stream]\nurl = "kafka://{bootstrap}"\n[collector]\nport = {port}\n[tenants.{TENANT}]\nkey_sha256 = ["{hash_key(KEY)}"]\n'
    )
    command = [sys.executable, "-m", "nightschool_collector", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("collecting on")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def run_official(bootstrap: str, folder: Path) -> Iterator[str]:
    http, grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    environment = {"TENANT": TENANT, "TENANT_KEY": KEY, "KAFKA": bootstrap, "OTLP_HTTP": http, "OTLP_GRPC": grpc}
    config = ROOT / "deploy" / "otelcol" / "config.yaml"
    with run_otelcol(config, folder, environment=environment, ready_url=f"http://{http}/v1/traces"):
        yield f"http://{http}"


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


# --- the traffic ------------------------------------------------------------------------------------------------------
def traffic_of_spans() -> list[ReadableSpan]:
    """Model calls of many traces, one trace of several spans, and a resource that claims another tenant."""
    memory = InMemorySpanExporter()
    for claimed in (None, "somebody-else"):
        provider = TracerProvider(resource=Resource({"service.name": "app", **({semconv.TENANT_ID: claimed} if claimed else {})}))
        provider.add_span_processor(SimpleSpanProcessor(memory))
        tracer = provider.get_tracer("dropin")
        for number in range(NUM_TRACES // 2):
            with tracer.start_as_current_span("request") as request:
                request.set_attribute("http.route", "/ask")
                with tracer.start_as_current_span("chat smol", attributes=call(f"{claimed}-{number}")):
                    pass
    return list(memory.get_finished_spans())


def call(name: str) -> dict[str, Any]:
    messages = {"user": f"question {name}", "assistant": f"answer {name}"}
    written = {
        role: json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}]) for role, text in messages.items()
    }
    return {
        semconv.GEN_AI_OPERATION_NAME: "chat",
        semconv.GEN_AI_INPUT_MESSAGES: written["user"],
        semconv.GEN_AI_OUTPUT_MESSAGES: written["assistant"],
        semconv.GEN_AI_RESPONSE_ID: f"response-{name}",
        semconv.GEN_AI_CONVERSATION_ID: f"conversation-{name}",
        semconv.TASK: "triage",
    }


def outcome_requests() -> list[ExportLogsServiceRequest]:
    """Outcomes by response, one of them corrected, one retracted, one about a call that does not exist."""
    said = [
        ("None-1", 1, "set"),
        ("None-1", 0, "set"),
        ("None-2", 1, "set"),
        ("None-2", None, "retract"),
        ("somebody-else-3", 1, "set"),
    ]
    said.append(("never", 1, "set"))
    bodies = [
        {
            "event_id": f"event-{number}",
            "target": {"response_id": f"response-{name}"},
            "name": "thumb",
            "value": value,
            "op": op,
            "source": {"kind": "human", "id": RATER},
            "occurred_at": START_NS + number * 10**9,
        }
        for number, (name, value, op) in enumerate(said)
    ]
    return [to_logs_request(parse_outcome(body), tenant=TENANT, received_ns=START_NS + 10**12) for body in bodies]


def plain_logs() -> ExportLogsServiceRequest:
    """Ordinary log records of four traces in one request."""
    request = ExportLogsServiceRequest()
    logs = request.resource_logs.add().scope_logs.add().log_records
    for number in range(12):
        log = logs.add(time_unix_nano=START_NS, trace_id=bytes([number % 4 + 1]) * 16, span_id=bytes([number + 1]) * 8)
        log.body.string_value = f"line {number}"
    return request


def send(url: str, spans: Sequence[ReadableSpan], logs: Sequence[ExportLogsServiceRequest]) -> None:
    """Spans through the official Python exporter in two batches that cut through traces, logs as raw requests."""
    exporter = OTLPSpanExporter(f"{url}/v1/traces", headers={"authorization": f"Bearer {KEY}"})
    half = len(spans) // 2 + 1
    assert [exporter.export(batch) for batch in (spans[:half], spans[half:])] == [SpanExportResult.SUCCESS] * 2
    exporter.shutdown()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/x-protobuf"}
    for request in logs:
        assert httpx.post(f"{url}/v1/logs", content=request.SerializeToString(), headers=headers).status_code == 200


# --- what is compared -------------------------------------------------------------------------------------------------
def records(stream: Stream, topic: str) -> list[StoredRecord]:
    ends = stream.end_offsets(topic)
    return [record for partition in sorted(ends) for record in stream.read(topic, partition, 0, ends[partition])]


def spans_by_place(stream: Stream) -> dict[tuple[bytes, int], list[bytes]]:
    """Span bytes by key and partition of the record that holds them, in order."""
    found: dict[tuple[bytes, int], list[bytes]] = {}
    for record in records(stream, semconv.TOPIC_SPANS):
        for resource in ExportTraceServiceRequest.FromString(record.value).resource_spans:
            spans = [span.SerializeToString(deterministic=True) for scope in resource.scope_spans for span in scope.spans]
            found.setdefault((record.key, record.partition), []).extend(spans)
    return found


def logs_by_place(stream: Stream, topic: str) -> dict[tuple[bytes, int], list[str]]:
    found: dict[tuple[bytes, int], list[str]] = {}
    for record in records(stream, topic):
        for resource in ExportLogsServiceRequest.FromString(record.value).resource_logs:
            lines = [log.body.string_value for scope in resource.scope_logs for log in scope.log_records]
            found.setdefault((record.key, record.partition), []).extend(lines)
    return found


def episodes(stream: Stream, folder: Path) -> tuple[list[BuiltEpisode], dict[str, int]]:
    manifest = freeze_whole_stream(stream, tenant=TENANT, now_ms=1)
    store = EpisodeStore(folder)
    try:
        store.build(stream, manifest)
        return list(store.episodes(TENANT)), dict(store.counts.dropped)
    finally:
        store.close()


def without_receipt(built: BuiltEpisode) -> BuiltEpisode:
    """Without the time when an outcome was received, which depends on each collector's clock."""
    what = built.episode
    outcomes, retracted = (
        tuple(replace(history, received_ns=()) for history in histories) for histories in (what.outcomes, what.retracted)
    )
    return replace(built, episode=replace(what, outcomes=outcomes, retracted=retracted))


def test_records_have_the_same_topic_key_partition_and_spans(sides: tuple[Side, Side]) -> None:
    """One record per trace and request, keyed by the trace id in lowercase hex, in the partition of its FNV-1a hash."""
    ours, official = (spans_by_place(side.stream) for side in sides)
    assert len(ours) == NUM_TRACES
    assert all(len(key) == 32 and key == key.lower() for key, _ in ours)
    assert ours == official
    counts = [len(records(side.stream, semconv.TOPIC_SPANS)) for side in sides]
    assert counts[0] == counts[1]


def test_log_records_of_a_trace_stand_in_the_same_place(sides: tuple[Side, Side]) -> None:
    """Log records of a trace have its key and partition; outcomes are in their own topic and nowhere else, in both."""
    ours, official = (logs_by_place(side.stream, semconv.TOPIC_LOGS) for side in sides)
    assert len(ours) == 4
    assert ours == official
    counts = [sum(map(len, logs_by_place(side.stream, semconv.TOPIC_OUTCOMES).values())) for side in sides]
    assert counts == [6, 6]


def test_episodes_are_identical(sides: tuple[Side, Side], tmp_path: Path) -> None:
    """Episodes, their outcomes with history, and every drop count are the same; the claimed tenant changed nothing."""
    ours, official = (episodes(side.stream, tmp_path / str(number)) for number, side in enumerate(sides))
    assert len(ours[0]) == NUM_TRACES
    assert sum(len(built.episode.outcomes) for built in ours[0]) == 2
    for mine, theirs in zip(ours[0], official[0], strict=True):
        assert without_receipt(mine) == without_receipt(theirs)
    assert ours[1] == official[1]


def test_a_wrong_key_is_refused_by_both(sides: tuple[Side, Side]) -> None:
    """Without the tenant's key nothing is accepted."""
    for side in sides:
        answer = httpx.post(
            f"{side.url}/v1/traces", headers={"authorization": "Bearer x", "content-type": "application/x-protobuf"}
        )
        assert answer.status_code == 401
