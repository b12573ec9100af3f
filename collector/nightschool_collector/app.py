"""The collector's HTTP routes.

A request is answered with 200 or 202 only after the stream has made all of its records durable; until then it can be sent
again. On the hot routes there is no validation layer between socket and stream: raw requests in, raw responses out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable

from fastapi import FastAPI
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nightschool import semconv
from nightschool.errors import RecordError, StreamError
from nightschool.keys import KeyRing
from nightschool.outcomes import Outcome, to_logs_request
from nightschool.stream import Record, Stream
from nightschool_collector import otlp, outcome_intake
from nightschool_collector.body import decoded, read_body
from nightschool_collector.logs import sort_logs
from nightschool_collector.otlp import Format
from nightschool_collector.outcome_api import parse_outcomes
from nightschool_collector.refusal import BAD_REQUEST, UNAUTHORIZED, UNAVAILABLE, UNSUPPORTED, RefusedError
from nightschool_collector.spans import sort_spans

OUTCOME_CONTENT_TYPES = ("application/json", "text/plain")  # a browser's sendBeacon sends text/plain without a preflight
MAX_RETRY_AFTER_S = 3  # exporters that see a longer wait than their deadline drop the batch at once


def create_app(
    stream: Stream,
    keys: KeyRing,
    max_body_bytes: int,
    *,
    clock_ns: Callable[[], int] = time.time_ns,
    jitter: Callable[[], float] = random.random,
) -> FastAPI:
    """The application; the caller opens and closes `stream`."""
    receiver = Receiver(stream, keys, max_body_bytes, clock_ns, jitter)
    app = FastAPI(title="nightschool collector", openapi_url=None)
    app.add_route("/v1/traces", receiver.traces, methods=["POST"])
    app.add_route("/v1/logs", receiver.logs, methods=["POST"])
    app.add_route("/v1/outcomes", receiver.outcomes, methods=["POST"])
    app.add_route("/healthz", receiver.healthz, methods=["GET"])
    app.add_route("/readyz", receiver.readyz, methods=["GET"])
    return app


class Receiver:
    """The routes and what they share."""

    def __init__(
        self,
        stream: Stream,
        keys: KeyRing,
        max_body_bytes: int,
        clock_ns: Callable[[], int],
        jitter: Callable[[], float],
    ) -> None:
        self._stream, self._keys, self._max_body_bytes = stream, keys, max_body_bytes
        self._clock_ns, self._jitter = clock_ns, jitter
        self._intake = outcome_intake.OutcomeIntake(self._append_outcomes)

    # --- routes ----------------------------------------------------------------------------------------------------------
    async def traces(self, request: Request) -> Response:
        return await self._otlp(request, self._accept_traces)

    async def logs(self, request: Request) -> Response:
        return await self._otlp(request, self._accept_logs)

    async def outcomes(self, request: Request) -> Response:
        try:
            return await self._receive(request, self._accept_outcomes)
        except RefusedError as error:
            return JSONResponse({"error": error.message}, status_code=error.status, headers=error.headers)

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """The stream answers too."""
        try:
            await run_in_threadpool(self._stream.end_offsets, semconv.TOPIC_SPANS)
        except StreamError as error:
            return PlainTextResponse(f"{error}\n", status_code=UNAVAILABLE)
        return PlainTextResponse("ok\n")

    # --- from a request to durable records -------------------------------------------------------------------------------
    async def _otlp(self, request: Request, accept: Callable[[str, bytes, Headers], Response]) -> Response:
        try:
            return await self._receive(request, accept)
        except RefusedError as error:
            return otlp.refuse(error, request.headers.get("content-type"))

    async def _receive(self, request: Request, accept: Callable[[str, bytes, Headers], Response]) -> Response:
        """Who it is, then the body, then in a worker thread everything that takes time."""
        tenant = self._keys.tenant_of(request.headers.get("authorization"))
        if tenant is None:
            message = "no tenant has this key; send 'Authorization: Bearer KEY' with a key of [tenants.NAME] key_sha256"
            raise RefusedError(UNAUTHORIZED, message, headers={"www-authenticate": "Bearer"})
        try:
            body = await read_body(request, limit=self._max_body_bytes)
            return await run_in_threadpool(accept, tenant, body, request.headers)
        except RecordError as error:
            raise RefusedError(BAD_REQUEST, str(error)) from error
        except StreamError as error:
            wait_s = 1 + int(self._jitter() * MAX_RETRY_AFTER_S)
            raise RefusedError(UNAVAILABLE, str(error), headers={"retry-after": str(wait_s)}) from error
        except ClientDisconnect:
            raise RefusedError(BAD_REQUEST, "the connection closed before the body was complete") from None

    def _accept_traces(self, tenant: str, body: bytes, headers: Headers) -> Response:
        form = otlp.format_of(headers.get("content-type"))
        raw = decoded(body, headers.get("content-encoding"), limit=self._max_body_bytes)
        request = otlp.decode(raw, ExportTraceServiceRequest(), form)
        found = sort_spans(request, raw if form is Format.PROTOBUF else None)
        self._append(semconv.TOPIC_SPANS, tenant, found.records, self._clock_ns())
        response = ExportTraceServiceResponse()
        if found.rejected:
            response.partial_success.rejected_spans = found.rejected
            response.partial_success.error_message = found.reason
        return otlp.answer(response, form)

    def _accept_logs(self, tenant: str, body: bytes, headers: Headers) -> Response:
        form = otlp.format_of(headers.get("content-type"))
        raw = decoded(body, headers.get("content-encoding"), limit=self._max_body_bytes)
        found = sort_logs(otlp.decode(raw, ExportLogsServiceRequest(), form))
        self._append_outcomes(tenant, found.outcomes)
        self._append(semconv.TOPIC_LOGS, tenant, found.other.records, self._clock_ns())
        response = ExportLogsServiceResponse()
        if found.other.rejected:
            response.partial_success.rejected_log_records = found.other.rejected
            response.partial_success.error_message = found.other.reason
        return otlp.answer(response, form)

    def _accept_outcomes(self, tenant: str, body: bytes, headers: Headers) -> Response:
        content_type = (headers.get("content-type") or OUTCOME_CONTENT_TYPES[0]).partition(";")[0].strip().lower()
        if content_type not in OUTCOME_CONTENT_TYPES:
            allowed = " and ".join(OUTCOME_CONTENT_TYPES)
            raise RefusedError(UNSUPPORTED, f"Content-Type is {content_type!r}; allowed are {allowed}, both with JSON")
        raw = decoded(body, headers.get("content-encoding"), limit=self._max_body_bytes)
        parsed = parse_outcomes(raw, headers.get("idempotency-key"))
        return outcome_intake.answer(parsed, self._intake.take(tenant, parsed.items))

    def _append_outcomes(self, tenant: str, outcomes: Iterable[Outcome]) -> None:
        now = self._clock_ns()
        requests = ((outcome.key, to_logs_request(outcome, tenant=tenant, received_ns=now)) for outcome in outcomes)
        records = [(key, request.SerializeToString()) for key, request in requests]
        self._append(semconv.TOPIC_OUTCOMES, tenant, records, now)

    def _append(self, topic: str, tenant: str, records: Iterable[tuple[bytes, bytes]], now_ns: int) -> None:
        headers = {
            semconv.HEADER_TENANT: tenant.encode(),
            semconv.HEADER_SCHEMA: semconv.SCHEMA.encode(),
            semconv.HEADER_RECEIVED_MS: str(now_ns // 1_000_000).encode(),
            semconv.HEADER_CONTENT_TYPE: Format.PROTOBUF.encode(),
        }
        if batch := [Record(key, value, headers) for key, value in records]:
            self._stream.append(topic, batch)
