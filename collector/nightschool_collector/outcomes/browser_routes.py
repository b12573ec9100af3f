"""The routes of pages and e-mails: outcomes by browser token, the snippet, the page behind a feedback link.

A page of another origin posts JSON, as text/plain without asking first (what `sendBeacon` does) or as application/json after a
preflight. There is no cookie and no API key here: what a request may do is in its token, which travels in the body.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nightschool.errors import RecordError
from nightschool.outcomes.tokens import TokenError, TokenVerifier
from nightschool_collector.counters import NOBODY
from nightschool_collector.outcomes.bodies import STATUS, load_json
from nightschool_collector.outcomes.browser_settings import BrowserSettings
from nightschool_collector.outcomes.idempotency import IdempotentWriter, Verdict
from nightschool_collector.outcomes.pages import confirm_page, from_form, page
from nightschool_collector.outcomes.token_scope import outcome_of
from nightschool_collector.outcomes.write_limits import WRITES_PER_TOKEN, WriteLimits
from nightschool_collector.receiver import Receiver
from nightschool_collector.request.admission import Hold, Traffic
from nightschool_collector.request.compression import decoded
from nightschool_collector.request.incoming import declared_bytes, read_body
from nightschool_collector.request.refusal import BAD_REQUEST, UNAVAILABLE, UNSUPPORTED, RefusedError

MAX_BODY_BYTES = 256 << 10
PATH, CONFIRM_PATH, SCRIPT_PATH = "/v1/outcomes/browser", "/v1/outcomes/confirm", "/outcome.js"
FORBIDDEN, TOO_MANY = 403, 429
_PREFLIGHT_AGE_S = 600
_SCRIPT_AGE_S = 3600


class BrowserRoutes:
    """The routes and what they share."""

    def __init__(
        self,
        receiver: Receiver,
        writer: IdempotentWriter,
        settings: BrowserSettings,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._receiver, self._writer, self._settings, self._clock_ns = receiver, writer, settings, clock_ns
        self._verifier = TokenVerifier(settings.keys, settings.revoked)
        self._limits = WriteLimits(per_minute=settings.writes_per_minute)
        self._all_origins = {origin for origins in settings.origins.values() for origin in origins}
        self._script = files("nightschool_collector").joinpath("outcomes/outcome.js").read_bytes()

    def routes(self) -> list[Route]:
        return [
            Route(PATH, self.write, methods=["POST"]),
            Route(PATH, self.preflight, methods=["OPTIONS"]),
            Route(CONFIRM_PATH, self.ask, methods=["GET"]),
            Route(CONFIRM_PATH, self.confirm, methods=["POST"]),
            Route(SCRIPT_PATH, self.script, methods=["GET"]),
        ]

    # --- routes ----------------------------------------------------------------------------------------------------------
    async def write(self, request: Request) -> Response:
        """One outcome from a page."""
        try:
            verdict = await self._receive(request, _from_json)
            response = JSONResponse(verdict.to_json(), status_code=STATUS[verdict.status])
        except RefusedError as error:
            response = JSONResponse({"error": error.message}, status_code=error.status, headers=error.headers)
        return self._readable(response, request)

    async def preflight(self, request: Request) -> Response:
        """A browser asks whether a page may send application/json."""
        if request.headers.get("origin") not in self._all_origins:
            return Response(status_code=FORBIDDEN, headers={"vary": "origin"})
        headers = {
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": "content-type",
            "access-control-max-age": str(_PREFLIGHT_AGE_S),
        }
        return self._readable(Response(status_code=204, headers=headers), request)

    async def ask(self, request: Request) -> Response:
        """The page behind a link: it asks, and writes nothing."""
        fields = dict(request.query_params)
        try:
            self._checked(from_form(fields))
        except TokenError as error:
            return page("This link does not work any more", "<p>Please ask for a new one.</p>", status=error.status)
        except RecordError:
            return page("This link is not complete", "<p>Please copy it as a whole.</p>", status=BAD_REQUEST)
        return confirm_page(fields)

    async def confirm(self, request: Request) -> Response:
        """The button of that page."""
        try:
            verdict = await self._receive(request, _from_form)
        except RefusedError as error:
            return page("Your feedback was not taken", "<p>Please try again later.</p>", status=error.status)
        if STATUS[verdict.status] >= BAD_REQUEST:
            return page("Your feedback was not taken", "<p>Please open the link again.</p>", status=STATUS[verdict.status])
        return page("Thank you", "<p>Your feedback was sent.</p>", status=STATUS[verdict.status])

    async def script(self, request: Request) -> Response:
        """The snippet that pages include."""
        headers = {"cache-control": f"public, max-age={_SCRIPT_AGE_S}", "cross-origin-resource-policy": "cross-origin"}
        return Response(self._script, media_type="text/javascript", headers=headers)

    # --- from a request to a durable outcome -----------------------------------------------------------------------------
    async def _receive(self, request: Request, read: Callable[[bytes, Request], dict[str, Any]]) -> Verdict:
        """The rate first, then the body, then in a worker thread the token and the stream; refusals are counted."""
        try:
            self._receiver.check_open()
            self._check_rate(request)
            declared = declared_bytes(request.headers.get("content-length"), limit=MAX_BODY_BYTES)
            with self._receiver.admission.reserve(Traffic.OUTCOMES, NOBODY, declared) as reservation:
                body = await self._body(request, reservation.hold)
                encoding = request.headers.get("content-encoding")

                def work() -> Verdict:
                    raw = decoded(body, encoding, limit=MAX_BODY_BYTES, hold=reservation.hold)
                    return self._accept(read(raw, request), request)

                return await self._receiver.store(Traffic.OUTCOMES, work)
        except RefusedError as error:
            self._receiver.counters.refused(NOBODY, "outcomes", error.reason)
            if error.status == UNAVAILABLE:
                error.headers.setdefault("retry-after", str(self._receiver.retry_after_s()))
            raise

    def _check_rate(self, request: Request) -> None:
        address = request.client.host if request.client else ""
        if wait_s := self._limits.wait_s(address, now_s=self._clock_ns() / 1e9):
            message = f"more than {self._settings.writes_per_minute} outcomes a minute came from this address; wait"
            raise RefusedError(TOO_MANY, message, headers={"retry-after": str(int(wait_s) + 1)})

    async def _body(self, request: Request, hold: Hold) -> bytes:
        try:
            return await read_body(request, limit=MAX_BODY_BYTES, hold=hold)
        except ClientDisconnect:
            raise RefusedError(BAD_REQUEST, "the connection closed before the body was complete") from None

    def _accept(self, data: dict[str, Any], request: Request) -> Verdict:
        try:
            tenant, token_id, outcome = self._checked(data)
            self._check_origin(tenant, request)
        except TokenError as error:
            raise RefusedError(error.status, str(error)) from error
        if not self._limits.reserve(tenant, token_id):
            raise RefusedError(
                TOO_MANY, f"the token was used {WRITES_PER_TOKEN} times, as often as a token may be; ask for a new one"
            )
        verdict = None
        try:
            (verdict,) = self._writer.take(tenant, [outcome])
        finally:
            if verdict is None or verdict.status != "accepted":
                self._limits.give_back(tenant, token_id)
        return verdict

    def _checked(self, data: dict[str, Any]) -> tuple[str, str, Any]:
        """Tenant, token id and outcome of a write; the token is believed before anything else is looked at."""
        claims = self._verifier.verify(data.get("token"), now_s=self._clock_ns() / 1e9)
        return claims.tenant, claims.token_id, outcome_of(data, claims, self._settings.rules)

    def _check_origin(self, tenant: str, request: Request) -> None:
        """A page's origin must be one of the tenant's; what is no page (an app, a script) sends none."""
        origin = request.headers.get("origin")
        if origin is None or origin in self._settings.origins.get(tenant, ()) or _is_own(origin, request):
            return
        message = f"pages of {origin} may not send outcomes of this tenant; add it to [tenants.{tenant}] outcome_origins"
        raise TokenError(FORBIDDEN, message)

    def _readable(self, response: Response, request: Request) -> Response:
        """Let an allowed page read the answer, a refusal too."""
        response.headers["vary"] = "origin"
        if (origin := request.headers.get("origin")) in self._all_origins and origin is not None:
            response.headers["access-control-allow-origin"] = origin
        return response


def _is_own(origin: str, request: Request) -> bool:
    """Whether the page came from this collector: the one behind a feedback link does."""
    return request.url.path == CONFIRM_PATH and origin.partition("://")[2] == request.headers.get("host")


def _from_json(raw: bytes, request: Request) -> dict[str, Any]:
    content_type = (request.headers.get("content-type") or "text/plain").partition(";")[0].strip().lower()
    if content_type not in ("application/json", "text/plain"):
        message = f"Content-Type is {content_type!r}; allowed are application/json and text/plain, both with JSON"
        raise RefusedError(UNSUPPORTED, message)
    data = load_json(raw)
    if not isinstance(data, dict):
        raise RecordError(f"the body is {type(data).__name__}; it must be a JSON object with 'token', 'name' and 'value'")
    return data


def _from_form(raw: bytes, request: Request) -> dict[str, Any]:
    try:
        return from_form(dict(parse_qsl(raw.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=16)))
    except ValueError as error:
        raise RecordError(f"the form cannot be read: {error}") from None
