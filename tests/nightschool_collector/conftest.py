"""The collector's application on a stream of its own, and requests to send to it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.testclient import TestClient

from nightschool.keys import KeyRing, hash_key
from nightschool.stream import StoredRecord, Stream, open_stream
from nightschool_collector.app import app_of
from nightschool_collector.counters import Counters
from nightschool_collector.receiver import Receiver
from nightschool_collector.request.admission import Admission, Budgets
from nightschool_collector.store.writer import RecordWriter

PROTOBUF, JSON = "application/x-protobuf", "application/json"
NOW_NS = 1_790_000_000_123_456_789


class Collector:
    """A collector under test: what it is sent, and what it stored."""

    limit = 1 << 20
    budgets = Budgets(spans=4 << 20, spans_per_tenant=2 << 20, outcomes=1 << 20)
    keys: Mapping[str, str] = {"acme": "key-of-acme", "globex": "key-of-globex"}

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        ring = KeyRing({tenant: [hash_key(key)] for tenant, key in self.keys.items()})
        self.jitter = 0.5
        counters = Counters(self.keys)
        self.receiver = Receiver(ring, counters, Admission(self.budgets), self.limit, jitter=lambda: self.jitter)
        self.writer = RecordWriter(stream, counters, clock_ns=lambda: NOW_NS)
        self.app = app_of(self.receiver, self.writer, operators=[hash_key("key-of-operator")])
        self.client = TestClient(self.app)

    def post(self, path: str, body: Any, *, form: str = PROTOBUF, tenant: str = "acme", **headers: str) -> httpx.Response:
        """POST a message, bytes or JSON data with a tenant's key; `headers` use _ for -."""
        if isinstance(body, Message):
            body = body.SerializeToString()
        elif not isinstance(body, bytes):
            body = json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"content-type": form, "authorization": f"Bearer {self.keys[tenant]}", **named}
        return self.client.post(path, content=body, headers=sent)

    async def call(
        self, path: str, headers: Mapping[str, str], receive: Callable[[], Awaitable[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """POST by ASGI alone: the body is what `receive` gives, the answer is the messages that were sent."""
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        named = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": path, "headers": named, "query_string": b"", "http_version": "1.1"}
        await self.app(scope, receive, send)
        return sent

    def stored(self, topic: str) -> list[StoredRecord]:
        ends = self.stream.end_offsets(topic)
        return [record for number in ends for record in self.stream.read(topic, number, 0, ends[number])]

    def everything_stored(self) -> list[StoredRecord]:
        return [record for topic in ("ns.otlp_spans", "ns.otlp_logs", "ns.outcomes") for record in self.stored(topic)]


class Requests:
    """Builds OTLP requests."""

    def spans(self, *traces: int, name: str = "chat m", resource: str = "app") -> ExportTraceServiceRequest:
        """One span for each of `traces`, in this order, under one resource and scope."""
        request = ExportTraceServiceRequest()
        group = request.resource_spans.add(schema_url="https://resource.schema")
        group.resource.attributes.add(key="service.name").value.string_value = resource
        scope = group.scope_spans.add(schema_url="https://scope.schema")
        scope.scope.name = "tests"
        for number, trace in enumerate(traces, start=1):
            span = scope.spans.add(trace_id=trace.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"), name=name)
            span.attributes.add(key="n").value.int_value = number
        return request


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    with open_stream(f"sqlite:{tmp_path / 'stream.db'}", partitions=4) as stream:
        yield stream


@pytest.fixture
def collector(stream: Stream) -> Collector:
    return Collector(stream)


@pytest.fixture
def requests() -> Requests:
    return Requests()
