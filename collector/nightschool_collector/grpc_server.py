"""OTLP over gRPC: the same receiver and records as over HTTP, in the same process and event loop, on a port of its own.

A call is handled as a stream of one message, which is the same bytes on the wire: so the key and the budget are checked
before the message is read. gRPC hands us compressed messages as they came, so that they expand within the same limits
as over HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from nightschool.errors import ConfigError
from nightschool_collector.receiver import Receiver
from nightschool_collector.request import refusal
from nightschool_collector.request.admission import Hold, Traffic
from nightschool_collector.request.body_count import BodyCount
from nightschool_collector.request.incoming import Incoming, receive_timeout
from nightschool_collector.request.otlp import Format
from nightschool_collector.request.protobuf_count import ProtobufCount
from nightschool_collector.request.refusal import BAD_REQUEST, RefusedError
from nightschool_collector.store.writer import RecordWriter, Write

_TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
_LOGS = "opentelemetry.proto.collector.logs.v1.LogsService"
# gRPC does not announce how large a message will be: so many bytes, a usual batch, are reserved until it is read.
_EXPECTED_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"  # a protobuf message cannot begin so: 0x1f is a field of a wire type that does not exist
_IDENTITY_AND_GZIP = 0b101
_MOST_CALLS = 128  # at a time over one connection; an exporter has one
# A client sends again what got UNAVAILABLE, and must not send again what got any other code.
_CODES = {
    refusal.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    refusal.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    refusal.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,  # after RESOURCE_EXHAUSTED some SDKs would send it again
    refusal.UNSUPPORTED: grpc.StatusCode.INVALID_ARGUMENT,
    refusal.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}


class GrpcServer:
    """The server; start it inside the event loop that answers the calls."""

    handshake_ms = 10_000
    """How long a connection may take until it speaks HTTP/2; gRPC's own two minutes let silent ones pile up."""

    def __init__(self, receiver: Receiver, writer: RecordWriter) -> None:
        self._receiver, self._writer = receiver, writer
        self._server: Any = None

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Listen and return the port; if `shared`, other processes may listen on it too and share the connections."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._receiver.max_body_bytes),
                ("grpc.per_message_decompression", 0),
                ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_AND_GZIP),
                ("grpc.so_reuseport", int(shared)),
                ("grpc.server_handshake_timeout_ms", self.handshake_ms),
                ("grpc.max_concurrent_streams", _MOST_CALLS),
            ]
        )
        self._server.add_generic_rpc_handlers(
            (
                self._service(_TRACES, "traces", self._writer.traces),
                self._service(_LOGS, "logs", self._writer.logs),
            )
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            what = f"cannot listen on {address} for gRPC: stop what listens there or change [collector] grpc_port"
            raise ConfigError(what) from error
        await self._server.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Accept nothing new, and give what is in flight `grace_s` to finish."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def _service(self, name: str, signal: str, write: Write) -> Any:
        def store(tenant: str, raw: bytes, hold: Hold) -> bytes:
            return write(tenant, raw, Format.PROTOBUF, hold).SerializeToString()

        async def export(messages: Any, context: Any) -> bytes:
            call = _ExportCall(signal, messages, context, limit=self._receiver.max_body_bytes)
            try:
                return await self._receiver.receive(call, store)
            except RefusedError as error:
                await _refuse(context, error)

        return grpc.method_handlers_generic_handler(name, {"Export": grpc.stream_unary_rpc_method_handler(export)})


class _ExportCall(Incoming):
    """One call of `Export`."""

    def __init__(self, signal: str, messages: Any, context: Any, *, limit: int) -> None:
        super().__init__(signal, Traffic.SPANS, _authorization(context.invocation_metadata()), limit=limit)
        self._messages = messages

    def expected_bytes(self) -> int:
        return _EXPECTED_BYTES

    async def read(self, hold: Hold) -> bytes:
        """The one message of the call; gRPC itself refuses one over the limit."""
        body: bytes | None = None
        async with receive_timeout():
            async for message in self._messages:
                if body is not None:
                    raise RefusedError(BAD_REQUEST, "an export is one message, got several")
                body = message
        if body is None:
            raise RefusedError(BAD_REQUEST, "an export is one message, got none")
        hold(len(body))
        return body

    def encoding(self, body: bytes) -> str | None:
        """gRPC does not say whether a message is compressed; its first bytes do."""
        return "gzip" if body.startswith(_GZIP_MAGIC) else None

    def count(self) -> BodyCount:
        return ProtobufCount()


async def _refuse(context: Any, error: RefusedError) -> NoReturn:
    code = _CODES.get(error.status, grpc.StatusCode.UNKNOWN)
    status = Status(code=code.value[0], message=error.message)
    trailers: list[tuple[str, bytes]] = []
    if error.retry_after_s is not None:
        retry = RetryInfo(retry_delay=Duration(seconds=error.retry_after_s))
        details = AnyMessage()
        details.Pack(retry)
        status.details.append(details)
        # Where OpenTelemetry's Python SDK looks for it; the specification has it in the details of the status.
        trailers.append(("google.rpc.retryinfo-bin", retry.SerializeToString()))
    trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    await context.abort(code, error.message, tuple(trailers))
    raise AssertionError("abort() raises")


def _authorization(metadata: Sequence[tuple[str, str | bytes]] | None) -> str | None:
    for name, value in metadata or ():
        if name == "authorization" and isinstance(value, str):
            return value
    return None
