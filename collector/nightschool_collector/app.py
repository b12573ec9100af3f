"""The collector's HTTP routes.

On the hot routes there is no validation layer between socket and stream: raw requests in, raw responses out. The order is the
same on all of them: whose key it is, whether there is room, the body, and in a worker thread everything that takes time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nightschool import semconv
from nightschool.keys import KeyRing
from nightschool.redaction.redactor import Redactor
from nightschool.stream import Stream
from nightschool_collector import counters
from nightschool_collector.counters import NOBODY, Counters
from nightschool_collector.outcomes import bodies, idempotency
from nightschool_collector.outcomes.bodies import parse_outcomes
from nightschool_collector.outcomes.browser_routes import BrowserRoutes
from nightschool_collector.outcomes.browser_settings import BrowserSettings
from nightschool_collector.receiver import Receiver
from nightschool_collector.request import otlp
from nightschool_collector.request.admission import Admission, Budgets, Hold, Traffic
from nightschool_collector.request.compression import decoded
from nightschool_collector.request.incoming import declared_bytes, read_body
from nightschool_collector.request.refusal import BAD_REQUEST, UNAVAILABLE, UNSUPPORTED, RefusedError
from nightschool_collector.store.writer import RecordWriter

OUTCOME_CONTENT_TYPES = ("application/json", "text/plain")  # a browser's sendBeacon sends text/plain without a preflight

Accept = Callable[[str, bytes, Request, Hold], Response]
"""What a route makes of a tenant's decompressed body, in a worker thread."""


def create_app(
    stream: Stream,
    keys: KeyRing,
    max_body_bytes: int,
    *,
    clock_ns: Callable[[], int] = time.time_ns,
    jitter: Callable[[], float] = random.random,
    browser: BrowserSettings | None = None,
    redactors: Mapping[str, Redactor] = MappingProxyType({}),
) -> FastAPI:
    """The application with a receiver of its own and budgets of twice `max_body_bytes`; the caller opens and closes `stream`."""
    writer = RecordWriter(stream, keys, Counters(keys.tenants), redactors=redactors, clock_ns=clock_ns)
    budgets = Budgets(2 * max_body_bytes, 2 * max_body_bytes, 2 * max_body_bytes)
    return app_of(Receiver(writer, Admission(budgets), max_body_bytes, jitter=jitter), browser=browser, clock_ns=clock_ns)


def app_of(
    receiver: Receiver,
    *,
    operators: Sequence[str] = (),
    browser: BrowserSettings | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> FastAPI:
    """The application of a receiver; `operators` are SHA-256 of the keys that may read every tenant's numbers."""
    outcomes = idempotency.IdempotentWriter(receiver.writer.append_outcomes, redact=receiver.writer.redact_outcome)
    routes = Routes(receiver, outcomes, KeyRing({"operators": operators}))
    app = FastAPI(title="nightschool collector", openapi_url=None)
    app.add_route("/v1/traces", routes.traces, methods=["POST"])
    app.add_route("/v1/logs", routes.logs, methods=["POST"])
    app.add_route("/v1/outcomes", routes.outcomes, methods=["POST"])
    app.add_route("/healthz", routes.healthz, methods=["GET"])
    app.add_route("/readyz", routes.readyz, methods=["GET"])
    app.add_route("/metrics", routes.metrics, methods=["GET"])
    app.router.routes.extend(BrowserRoutes(receiver, outcomes, browser or BrowserSettings(), clock_ns=clock_ns).routes())
    return app


class Routes:
    """The routes and what they share."""

    def __init__(self, receiver: Receiver, outcomes: idempotency.IdempotentWriter, operators: KeyRing) -> None:
        self._receiver, self._outcomes, self._operators = receiver, outcomes, operators

    # --- routes ----------------------------------------------------------------------------------------------------------
    async def traces(self, request: Request) -> Response:
        return await self._otlp(request, "traces", self._accept_traces)

    async def logs(self, request: Request) -> Response:
        return await self._otlp(request, "logs", self._accept_logs)

    async def outcomes(self, request: Request) -> Response:
        try:
            return await self.receive(request, "outcomes", Traffic.OUTCOMES, self._accept_outcomes)
        except RefusedError as error:
            return JSONResponse({"error": error.message}, status_code=error.status, headers=error.headers)

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """The stream answers too, and nobody has told the process to stop."""
        try:
            self._receiver.check_open()
            await self._receiver.store(Traffic.OUTCOMES, lambda: self._receiver.writer.stream.end_offsets(semconv.TOPIC_SPANS))
        except RefusedError as error:
            return PlainTextResponse(f"{error.message}\n", status_code=error.status)
        return PlainTextResponse("ok\n")

    async def metrics(self, request: Request) -> Response:
        """Totals for everybody who can reach the port, tenants by name for an operator's key."""
        is_operator = self._operators.tenant_of(request.headers.get("authorization")) is not None
        text = self._receiver.counters.text(by_tenant=is_operator)
        return Response(text, media_type=counters.CONTENT_TYPE)

    # --- from a request to durable records -------------------------------------------------------------------------------
    async def receive(self, request: Request, signal: str, traffic: Traffic, accept: Accept) -> Response:
        """Authenticate, admit, read and store one request; `RefusedError` says what to answer instead, and is counted."""
        tenant = NOBODY
        try:
            tenant = self._receiver.writer.tenant_of(request.headers.get("authorization"))
            return await self.admit(request, tenant, traffic, accept)
        except RefusedError as error:
            self._receiver.counters.refused(tenant, signal, error.reason)
            if error.status == UNAVAILABLE:
                error.headers.setdefault("retry-after", str(self._receiver.retry_after_s()))
            raise

    async def admit(self, request: Request, tenant: str, traffic: Traffic, accept: Accept) -> Response:
        """Hold room for a request from before its body is read until it is answered."""
        self._receiver.check_open()
        limit, headers = self._receiver.max_body_bytes, request.headers
        declared = declared_bytes(headers.get("content-length"), limit=limit)
        with self._receiver.admission.reserve(traffic, tenant, declared) as reservation:
            try:
                body = await read_body(request, limit=limit, hold=reservation.hold)
            except ClientDisconnect:
                raise RefusedError(BAD_REQUEST, "the connection closed before the body was complete") from None

            def work() -> Response:
                raw = decoded(body, headers.get("content-encoding"), limit=limit, hold=reservation.hold)
                return accept(tenant, raw, request, reservation.hold)

            return await self._receiver.store(traffic, work)

    async def _otlp(self, request: Request, signal: str, accept: Accept) -> Response:
        try:
            return await self.receive(request, signal, Traffic.SPANS, accept)
        except RefusedError as error:
            return otlp.refuse(error, request.headers.get("content-type"))

    def _accept_traces(self, tenant: str, raw: bytes, request: Request, hold: Hold) -> Response:
        form = otlp.format_of(request.headers.get("content-type"))
        return otlp.answer(self._receiver.writer.traces(tenant, raw, form, hold), form)

    def _accept_logs(self, tenant: str, raw: bytes, request: Request, hold: Hold) -> Response:
        form = otlp.format_of(request.headers.get("content-type"))
        return otlp.answer(self._receiver.writer.logs(tenant, raw, form, hold), form)

    def _accept_outcomes(self, tenant: str, raw: bytes, request: Request, hold: Hold) -> Response:
        content_type = (request.headers.get("content-type") or OUTCOME_CONTENT_TYPES[0]).partition(";")[0].strip().lower()
        if content_type not in OUTCOME_CONTENT_TYPES:
            allowed = " and ".join(OUTCOME_CONTENT_TYPES)
            raise RefusedError(UNSUPPORTED, f"Content-Type is {content_type!r}; allowed are {allowed}, both with JSON")
        parsed = parse_outcomes(raw, request.headers.get("idempotency-key"))
        return bodies.answer(parsed, self._outcomes.take(tenant, parsed.items))
