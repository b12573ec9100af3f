"""For tests of apps and of nightschool: a fixed clock, fixed ids, and a collector behind a real HTTP server.

with nightschool.testing.capture() as collector:
    my_app()
    nightschool.flush()
    assert collector.spans[0].attributes["nightschool.task"] == "triage"
"""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace.id_generator import IdGenerator

from nightschool.otlp.attributes import attributes_of
from nightschool.sdk.api import use
from nightschool.sdk.client import Client

START_NS = 1_767_225_600 * 10**9  # 2026-01-01T00:00:00Z


class FixedClock:
    """A clock in nanoseconds since 1970 that moves on by `step_ns` each time it is read."""

    def __init__(self, start_ns: int = START_NS, *, step_ns: int = 10**9) -> None:
        self.now_ns = start_ns
        self._step_ns = step_ns

    def __call__(self) -> int:
        self.now_ns += self._step_ns
        return self.now_ns - self._step_ns


class FixedIds(IdGenerator):
    """Trace and span ids that count from 1."""

    def __init__(self) -> None:
        self._num_traces = 0
        self._num_spans = 0

    def generate_trace_id(self) -> int:
        self._num_traces += 1
        return self._num_traces

    def generate_span_id(self) -> int:
        self._num_spans += 1
        return self._num_spans


@dataclass(frozen=True, slots=True)
class CapturedSpan:
    """One span as the collector got it, as plain data."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_span_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    status: str
    status_message: str
    links: tuple[str, ...]
    """Trace ids of linked spans."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How the collector is to answer one request."""

    status: int
    """HTTP status; 0 closes the connection without an answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class CapturedRequest:
    """One HTTP request that reached the collector."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    """Decompressed."""
    status: int
    """HTTP status of the answer; 0 for none."""
    at_monotonic_s: float


class Collector:
    """A collector in memory behind a real HTTP server on 127.0.0.1. It can be told to fail."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[CapturedRequest] = []
        self._failures: dict[str, deque[Failure]] = {}
        self._changed = threading.Condition()
        self._server = _Server(self, port)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def fail(self, *failures: Failure, path: str = "/v1/traces") -> None:
        """Answer the next requests to `path` with `failures`, one after another."""
        with self._changed:
            self._failures.setdefault(path, deque()).extend(failures)

    @property
    def spans(self) -> list[CapturedSpan]:
        """Every span accepted, in order of arrival."""
        return [span for request in self._accepted("/v1/traces") for span in decode_spans(request.body)]

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """Every outcome accepted, in order of arrival."""
        bodies = [json.loads(request.body) for request in self._accepted("/v1/outcomes")]
        return [outcome for body in bodies for outcome in body.get("outcomes", [body])]

    def wait_for(self, condition: Callable[[Self], bool], *, timeout_s: float = 10.0) -> bool:
        """Wait until `condition(self)` holds, asked after each request; False when it does not within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout_s)

    def stop(self) -> None:
        """Close the port and every connection."""
        self._server.shutdown()
        self._server.close_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _accepted(self, path: str) -> list[CapturedRequest]:
        with self._changed:
            return [request for request in self.requests if request.path == path and 200 <= request.status < 300]

    def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> Failure:
        """Record one request and return how to answer it."""
        with self._changed:
            failures = self._failures.get(path)
            success = Failure(202, body=b"{}") if path == "/v1/outcomes" else Failure(200, body=_EMPTY_ANSWER)
            answer = failures.popleft() if failures else success
            self.requests.append(CapturedRequest(path, headers, body, answer.status, time.monotonic()))
            self._changed.notify_all()
        return answer


@contextlib.contextmanager
def capture(tenant: str = "test", **settings: Any) -> Iterator[Collector]:
    """Record into a collector in memory, with a fixed clock and fixed ids; after the block nothing is recorded."""
    with Collector() as collector:
        defaults = {"api_key": "ns-test-key", "clock": FixedClock(), "id_generator": FixedIds()}
        use(Client(collector.endpoint, tenant, **{**defaults, **settings}))
        try:
            yield collector
        finally:
            use(Client("", "", api_key="", enabled=False))


# --- HTTP -------------------------------------------------------------------------------------------------------------
_EMPTY_ANSWER = ExportTraceServiceResponse().SerializeToString()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, collector: Collector, port: int) -> None:
        self.collector = collector
        self._open: set[Any] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_all(self) -> None:
        """Close the kept-alive connections, as the end of a process would, and wait for their threads."""
        for request in list(self._open):
            super().shutdown_request(request)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = self.server.collector._answer(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        if answer.status == 0:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the connection was cut
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        return None


# --- decoding ---------------------------------------------------------------------------------------------------------
def decode_spans(body: bytes) -> list[CapturedSpan]:
    """The spans of one serialized OTLP request."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        _decode_span(span, attributes_of(resource.resource.attributes))
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _decode_span(span: Span, resource: Mapping[str, Any]) -> CapturedSpan:
    return CapturedSpan(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=attributes_of(span.attributes),
        resource=resource,
        status={0: "UNSET", 1: "OK", 2: "ERROR"}[span.status.code],
        status_message=span.status.message,
        links=tuple(link.trace_id.hex() for link in span.links),
    )
