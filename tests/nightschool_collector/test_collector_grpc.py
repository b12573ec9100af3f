"""OTLP/gRPC: the same records, refusals and limits as over HTTP, with the status codes of gRPC."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from nightschool.errors import StreamUnavailable
from nightschool_collector.grpc_server import GrpcServer
from nightschool_collector.request.admission import Traffic

KEY = (("authorization", "Bearer key-of-acme"),)


@pytest.fixture
def port(collector: Any) -> Iterator[int]:
    """The gRPC server of the collector under test, in an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()

    def wait_for(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    server = GrpcServer(collector.receiver, collector.writer)
    yield wait_for(server.start("127.0.0.1", 0))
    wait_for(server.stop(5))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def channel(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


def refusal(call: Any, *args: Any, **options: Any) -> tuple[grpc.StatusCode, str, dict[str, bytes]]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **options)
    error: Any = caught.value
    return error.code(), error.details(), dict(error.trailing_metadata())


def test_the_official_exporter_gets_through(collector: Any, port: int) -> None:
    """Spans of OpenTelemetry's own gRPC exporter arrive under the tenant of its key, gzip included."""
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        exporter = OTLPSpanExporter(f"127.0.0.1:{port}", insecure=True, headers=KEY, compression=compression)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with provider.get_tracer("tests").start_as_current_span("chat m"):
            pass
        provider.shutdown()
    records = collector.stored("ns.otlp_spans")
    assert [record.headers["ns-tenant"] for record in records] == [b"acme", b"acme"]
    for record in records:
        (group,) = ExportTraceServiceRequest.FromString(record.value).resource_spans
        assert group.scope_spans[0].spans[0].name == "chat m"


def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Who connects and says nothing is not kept."""
    monkeypatch.setattr(GrpcServer, "handshake_ms", 100)
    with socket.create_connection(("127.0.0.1", request.getfixturevalue("port")), timeout=30) as connection:
        while connection.recv(1024):  # the server's own settings come first
            pass


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_grpc_and_http_store_the_same(collector: Any, channel: Any, requests: Any, compression: Any) -> None:
    """The same request over both transports gives the same records, traces and logs."""
    sent = requests.spans(1, 2, 1)
    logs = ExportLogsServiceRequest()
    logs.resource_logs.add().scope_logs.add().log_records.add(trace_id=b"\1" * 16, event_name="x")
    TraceServiceStub(channel).Export(sent, metadata=KEY, compression=compression)
    LogsServiceStub(channel).Export(logs, metadata=KEY, compression=compression)
    over_grpc = [(record.key, record.value, record.headers) for record in collector.everything_stored()]
    assert collector.post("/v1/traces", sent).status_code == 200
    assert collector.post("/v1/logs", logs).status_code == 200
    everything = [(record.key, record.value, record.headers) for record in collector.everything_stored()]
    assert sorted(over_grpc * 2, key=str) == sorted(everything, key=str)


def test_what_can_never_be_stored_is_partial_success(collector: Any, channel: Any, requests: Any) -> None:
    """A span without a trace is rejected with count and reason, the rest is stored, and no retry is asked for."""
    partial = TraceServiceStub(channel).Export(requests.spans(0, 5), metadata=KEY).partial_success
    assert partial.rejected_spans == 1
    assert "all zero" in partial.error_message
    assert [record.key for record in collector.stored("ns.otlp_spans")] == [b"%032x" % 5]


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),), (("authorization", "key-of-acme"),)])
def test_strangers_are_unauthenticated(collector: Any, channel: Any, requests: Any, metadata: Any) -> None:
    """No key or an unknown one stores nothing and is not sent again."""
    code, said, _ = refusal(TraceServiceStub(channel).Export, requests.spans(1), metadata=metadata)
    assert (code, "no tenant has this key" in said) == (grpc.StatusCode.UNAUTHENTICATED, True)
    assert collector.everything_stored() == []


def test_bytes_that_are_no_request_are_invalid(collector: Any, channel: Any) -> None:
    """Raw bytes, a broken gzip body and several messages in one call are INVALID_ARGUMENT."""
    export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    for body in (b"\xff\xff", b"\x1f\x8bnot gzip", b"\x0a\x05ab"):
        code, said, _ = refusal(channel.unary_unary(export), body, metadata=KEY)
        assert (code, "not a valid" in said or "not valid" in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, said, _ = refusal(channel.stream_unary(export), iter([b"", b""]), metadata=KEY)
    assert (code, said) == (grpc.StatusCode.INVALID_ARGUMENT, "an export is one message, got several")
    assert collector.everything_stored() == []


def test_a_bomb_is_refused_without_being_expanded(collector: Any, channel: Any) -> None:
    """The limit holds for the message as sent and as decompressed."""
    bomb = ExportTraceServiceRequest()
    bomb.resource_spans.add().schema_url = "x" * (64 << 20)
    code, said, _ = refusal(TraceServiceStub(channel).Export, bomb, metadata=KEY, compression=grpc.Compression.Gzip)
    assert (code, "when decompressed" in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, _, _ = refusal(TraceServiceStub(channel).Export, bomb, metadata=KEY)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED  # by gRPC itself; without RetryInfo no client retries


def test_a_stream_that_is_down_is_unavailable_with_retry_info(collector: Any, channel: Any, requests: Any) -> None:
    """UNAVAILABLE with RetryInfo of 1 to 3 s, both where the specification puts it and where Python's SDK looks."""

    def away(*args: Any) -> Any:
        raise StreamUnavailable("the disk is full")

    collector.stream.append = away
    code, said, trailers = refusal(TraceServiceStub(channel).Export, requests.spans(1), metadata=KEY)
    assert (code, said) == (grpc.StatusCode.UNAVAILABLE, "the disk is full")
    status = Status.FromString(trailers["grpc-status-details-bin"])
    assert (status.code, status.message) == (14, "the disk is full")
    in_details = RetryInfo()
    assert status.details[0].Unpack(in_details)
    assert in_details == RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"])
    assert in_details.retry_delay.seconds == 2


def test_a_full_collector_is_unavailable_before_the_message_is_read(collector: Any, channel: Any) -> None:
    """Over the budget the answer comes before the client has sent its message."""
    asked = Event()

    def late() -> Iterator[bytes]:
        asked.wait(30)
        yield b""

    export = channel.stream_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
    with collector.receiver.admission.reserve(Traffic.SPANS, "acme", 2 << 20):
        code, said, trailers = refusal(export, late(), metadata=KEY)
    asked.set()
    assert (code, "in flight" in said) == (grpc.StatusCode.UNAVAILABLE, True)
    assert "google.rpc.retryinfo-bin" in trailers
    assert collector.receiver.counters.total("refused_requests", "acme", "traces", "pressure") == 1
