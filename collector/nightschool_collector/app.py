"""The collector's HTTP routes.

On the routes that take many requests there is no validation layer between socket and stream: they get the raw request
and give a raw response. `Receiver.receive` is the way in; these routes choose the content type and the answer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from nightschool import semconv
from nightschool.keys import KeyRing
from nightschool.redaction.redactor import Redactor
from nightschool.stream import Stream
from nightschool_collector.counters import CONTENT_TYPE, Counters
from nightschool_collector.outcomes import bodies
from nightschool_collector.outcomes.browser_routes import BrowserRoutes
from nightschool_collector.outcomes.browser_settings import BrowserAccess, BrowserSettings
from nightschool_collector.outcomes.idempotency import IdempotentWriter
from nightschool_collector.receiver import Receiver
from nightschool_collector.request import otlp
from nightschool_collector.request.admission import Admission, Budgets, Hold, Traffic
from nightschool_collector.request.incoming import HttpRequest
from nightschool_collector.request.json_count import JsonCount
from nightschool_collector.request.refusal import RefusedError
from nightschool_collector.store.writer import RecordWriter, Write


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
    """The application on `stream`, with budgets of twice `max_body_bytes`; the caller opens and closes the stream."""
    counters = Counters(keys.tenants)
    budgets = Budgets(2 * max_body_bytes, 2 * max_body_bytes, 2 * max_body_bytes)
    receiver = Receiver(keys, counters, Admission(budgets), max_body_bytes, jitter=jitter)
    writer = RecordWriter(stream, counters, redactors=redactors, clock_ns=clock_ns)
    return app_of(receiver, writer, browser=BrowserAccess(browser) if browser else None, clock_ns=clock_ns)


def app_of(
    receiver: Receiver,
    writer: RecordWriter,
    *,
    operators: Sequence[str] = (),
    browser: BrowserAccess | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> FastAPI:
    """The application; `operators` are the SHA-256 of the keys that may read every tenant's numbers."""
    outcomes = IdempotentWriter(writer.append_outcomes, redact=writer.redact_outcome)
    routes = Routes(receiver, writer, outcomes, KeyRing({"operators": operators}))
    app = FastAPI(title="nightschool collector", openapi_url=None)
    app.add_route("/v1/traces", routes.traces, methods=["POST"])
    app.add_route("/v1/logs", routes.logs, methods=["POST"])
    app.add_route("/v1/outcomes", routes.outcomes, methods=["POST"])
    app.add_route("/healthz", routes.healthz, methods=["GET"])
    app.add_route("/readyz", routes.readyz, methods=["GET"])
    app.add_route("/metrics", routes.metrics, methods=["GET"])
    access = browser or BrowserAccess(BrowserSettings())
    app.router.routes.extend(BrowserRoutes(receiver, outcomes, access, clock_ns=clock_ns).routes())
    return app


class Routes:
    """The routes for servers and operators, and what they share; those for browsers are `BrowserRoutes`."""

    def __init__(self, receiver: Receiver, writer: RecordWriter, outcomes: IdempotentWriter, operators: KeyRing) -> None:
        self._receiver, self._writer, self._outcomes, self._operators = receiver, writer, outcomes, operators

    async def traces(self, request: Request) -> Response:
        return await self._otlp(request, "traces", self._writer.traces)

    async def logs(self, request: Request) -> Response:
        return await self._otlp(request, "logs", self._writer.logs)

    async def outcomes(self, request: Request) -> Response:
        def store(tenant: str, raw: bytes, hold: Hold) -> Response:
            bodies.check_content_type(request.headers.get("content-type"))
            body = bodies.parse_outcomes(raw, request.headers.get("idempotency-key"))
            return bodies.answer(body, self._outcomes.write(tenant, body.items))

        limit = self._receiver.max_body_bytes
        incoming = HttpRequest(request, "outcomes", Traffic.OUTCOMES, limit=limit, count=lambda: JsonCount(bodies.MAX_PARTS))
        try:
            return await self._receiver.receive(incoming, store)
        except RefusedError as error:
            return JSONResponse({"error": error.message}, status_code=error.status, headers=error.headers)

    async def healthz(self, request: Request) -> Response:
        """The process answers."""
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """The stream answers too, and nobody has told the process to stop."""
        try:
            self._receiver.check_open()
            await self._receiver.in_thread(Traffic.OUTCOMES, lambda: self._writer.stream.end_offsets(semconv.TOPIC_SPANS))
        except RefusedError as error:
            return PlainTextResponse(f"{error.message}\n", status_code=error.status)
        return PlainTextResponse("ok\n")

    async def metrics(self, request: Request) -> Response:
        """Totals for everybody who can reach the port, tenants by name for an operator's key."""
        is_operator = self._operators.tenant_of(request.headers.get("authorization")) is not None
        text = self._receiver.counters.text(by_tenant=is_operator)
        return Response(text, media_type=CONTENT_TYPE)

    async def _otlp(self, request: Request, signal: str, write: Write) -> Response:
        content_type = request.headers.get("content-type")

        def store(tenant: str, raw: bytes, hold: Hold) -> Response:
            form = otlp.format_of(content_type)
            return otlp.answer(write(tenant, raw, form, hold), form)

        limit = self._receiver.max_body_bytes
        incoming = HttpRequest(request, signal, Traffic.SPANS, limit=limit, count=lambda: otlp.count_of(content_type))
        try:
            return await self._receiver.receive(incoming, store)
        except RefusedError as error:
            return otlp.refuse(error, content_type)
