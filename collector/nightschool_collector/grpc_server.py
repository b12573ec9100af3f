"""OTLP over gRPC: the same intake as over HTTP, in the same process and event loop, on a port of its own.

A call is taken as a stream of one message, which is the same on the wire: so the key and the room for the message are checked
before the message is read. Compressed messages come to us compressed, so that they expand within the same limits as over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from nightschool.errors import ConfigError
from nightschool_collector.counters import NOBODY
from nightschool_collector.receiver import Receiver
from nightschool_collector.request import refusal
from nightschool_collector.request.admission import Hold, Reservation, Traffic
from nightschool_collector.request.compression import decoded
from nightschool_collector.request.incoming import in_time
from nightschool_collector.request.otlp import Format
from nightschool_collector.request.refusal import BAD_REQUEST, UNAVAILABLE, RefusedError

_TRACES = "opentelemetry.proto.collector.trace.v1.TraceService"
_LOGS = "opentelemetry.proto.collector.logs.v1.LogsService"
# gRPC does not say how large a message will be: room for a usual batch is held until it is known.
_EXPECTED_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"  # a protobuf message cannot begin so: 0x1f is a field of a wire type that does not exist
_IDENTITY_AND_GZIP = 0b101
# UNAVAILABLE is tried again; a client must not send again what the others refuse.
_CODES = {
    refusal.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    refusal.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    refusal.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,  # as RESOURCE_EXHAUSTED some SDKs would send it again
    refusal.UNSUPPORTED: grpc.StatusCode.INVALID_ARGUMENT,
    refusal.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}

Take = Callable[[str, bytes, Format, Hold], Message]


class GrpcServer:
    """The server; start it inside the event loop that answers the calls."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._server: Any = None

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Listen and return the port; `shared` lets other processes listen on it too, and the kernel shares out connections."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._receiver.max_body_bytes),
                ("grpc.per_message_decompression", 0),
                ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_AND_GZIP),
                ("grpc.so_reuseport", int(shared)),
            ]
        )
        self._server.add_generic_rpc_handlers(
            (
                self._service(_TRACES, "traces", self._receiver.writer.traces),
                self._service(_LOGS, "logs", self._receiver.writer.logs),
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
        """Take nothing new, and give what is in flight `grace_s` to finish."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def _service(self, name: str, signal: str, take: Take) -> Any:
        async def export(requests: Any, context: Any) -> bytes:
            return await self._export(signal, take, requests, context)

        return grpc.method_handlers_generic_handler(name, {"Export": grpc.stream_unary_rpc_method_handler(export)})

    async def _export(self, signal: str, take: Take, requests: Any, context: Any) -> bytes:
        tenant = NOBODY
        try:
            tenant = self._receiver.writer.tenant_of(_authorization(context.invocation_metadata()))
            self._receiver.check_open()
            with self._receiver.admission.reserve(Traffic.SPANS, tenant, _EXPECTED_BYTES) as reservation:
                return await self._take(tenant, take, requests, reservation)
        except RefusedError as error:
            self._receiver.counters.refused(tenant, signal, error.reason)
            await self._refuse(context, error)

    async def _take(self, tenant: str, take: Take, requests: Any, reservation: Reservation) -> bytes:
        body: bytes | None = None
        async with in_time():
            async for message in requests:
                if body is not None:
                    raise RefusedError(BAD_REQUEST, "an export is one message, got several")
                body = message
        if body is None:
            raise RefusedError(BAD_REQUEST, "an export is one message, got none")
        sent = body
        reservation.hold(len(sent))

        def work() -> bytes:
            encoding = "gzip" if sent.startswith(_GZIP_MAGIC) else None
            raw = decoded(sent, encoding, limit=self._receiver.max_body_bytes, hold=reservation.hold)
            return take(tenant, raw, Format.PROTOBUF, reservation.hold).SerializeToString()

        return await self._receiver.store(Traffic.SPANS, work)

    async def _refuse(self, context: Any, error: RefusedError) -> NoReturn:
        code = _CODES.get(error.status, grpc.StatusCode.UNKNOWN)
        status = Status(code=code.value[0], message=error.message)
        trailers: list[tuple[str, bytes]] = []
        if error.status == UNAVAILABLE:
            retry = RetryInfo(retry_delay=Duration(seconds=self._receiver.retry_after_s()))
            details = AnyMessage()
            details.Pack(retry)
            status.details.append(details)
            trailers.append(("google.rpc.retryinfo-bin", retry.SerializeToString()))  # where OpenTelemetry's Python SDK looks
        trailers.append(("grpc-status-details-bin", status.SerializeToString()))
        await context.abort(code, error.message, tuple(trailers))
        raise AssertionError("abort() raises")


def _authorization(metadata: Sequence[tuple[str, str | bytes]] | None) -> str | None:
    for name, value in metadata or ():
        if name == "authorization" and isinstance(value, str):
            return value
    return None
