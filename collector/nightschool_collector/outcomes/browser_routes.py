"""The routes of pages and e-mails: outcomes by browser token, the script for pages, the page behind a feedback link.

A page of another origin posts JSON: as text/plain, which a browser sends without a preflight (as `sendBeacon` does), or
as application/json after a preflight. There is no cookie and no API key here: what a request may do is in its token,
which is a field of the body.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nightschool.errors import RecordError
from nightschool.outcomes.record import Outcome
from nightschool.outcomes.tokens import TokenError
from nightschool_collector.outcomes.bodies import STATUS, check_content_type, load_json
from nightschool_collector.outcomes.browser_settings import BrowserAccess
from nightschool_collector.outcomes.idempotency import IdempotentWriter, Verdict
from nightschool_collector.outcomes.pages import confirm_page, page, parse_fields
from nightschool_collector.outcomes.token_scope import outcome_of
from nightschool_collector.outcomes.write_limits import WRITES_PER_TOKEN, WriteLimits, network_of
from nightschool_collector.receiver import Receiver
from nightschool_collector.request.admission import Hold, Traffic
from nightschool_collector.request.body_count import NoCount
from nightschool_collector.request.incoming import HttpRequest
from nightschool_collector.request.refusal import BAD_REQUEST, RefusedError

MAX_BODY_BYTES = 256 << 10  # a text of at most 64 KiB, which JSON may escape to several times its size, and a token
PATH, CONFIRM_PATH, SCRIPT_PATH = "/v1/outcomes/browser", "/v1/outcomes/confirm", "/outcome.js"
FORBIDDEN, TOO_MANY = 403, 429
_PREFLIGHT_AGE_S = 600  # how long a browser remembers that a page may send JSON
_SCRIPT_AGE_S = 3600  # how long a browser keeps the script, so also how long an old one stays in use after an update
_MAX_FORM_FIELDS = 16  # the form of a link has six


class BrowserRoutes:
    """The routes and what they share."""

    def __init__(
        self,
        receiver: Receiver,
        outcomes: IdempotentWriter,
        access: BrowserAccess,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._receiver, self._outcomes, self._access, self._clock_ns = receiver, outcomes, access, clock_ns
        self._per_minute = access.settings.writes_per_minute
        self._limits = WriteLimits(per_minute=self._per_minute)
        self._script = files("nightschool_collector.outcomes").joinpath("outcome.js").read_bytes()

    def routes(self) -> list[Route]:
        return [
            Route(PATH, self.write, methods=["POST"]),
            Route(PATH, self.preflight, methods=["OPTIONS"]),
            Route(CONFIRM_PATH, self.ask, methods=["GET"]),
            Route(CONFIRM_PATH, self.confirm, methods=["POST"]),
            Route(SCRIPT_PATH, self.script, methods=["GET"]),
        ]

    # --- routes -------------------------------------------------------------------------------------------------------
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
        if request.headers.get("origin") not in self._access.all_origins:
            return Response(status_code=FORBIDDEN, headers={"vary": "origin"})
        headers = {
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": "content-type",
            "access-control-max-age": str(_PREFLIGHT_AGE_S),
        }
        return self._readable(Response(status_code=204, headers=headers), request)

    async def ask(self, request: Request) -> Response:
        """The page behind a link: it asks for a click, and writes nothing."""
        fields = dict(request.query_params)
        try:
            self._checked(parse_fields(fields))
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
        """The script that pages include."""
        headers = {"cache-control": f"public, max-age={_SCRIPT_AGE_S}", "cross-origin-resource-policy": "cross-origin"}
        return Response(self._script, media_type="text/javascript", headers=headers)

    # --- from a request to a durable outcome --------------------------------------------------------------------------
    async def _receive(self, request: Request, parse: Callable[[bytes, Request], dict[str, Any]]) -> Verdict:
        def store(_tenant: str, raw: bytes, _hold: Hold) -> Verdict:
            return self._store(parse(raw, request), request)

        return await self._receiver.receive(_PageRequest(request, self._check_rate), store)

    def _check_rate(self, request: Request) -> None:
        address = request.client.host if request.client else ""
        if wait_s := self._limits.wait_s(address, now_s=self._clock_ns() / 1e9):
            message = f"more than {self._per_minute} outcomes a minute came from this address; wait"
            raise RefusedError(TOO_MANY, message, retry_after_s=int(wait_s) + 1)

    def _store(self, fields: dict[str, Any], request: Request) -> Verdict:
        try:
            tenant, token_id, outcome = self._checked(fields)
            self._check_origin(tenant, request)
        except TokenError as error:
            raise RefusedError(error.status, str(error)) from error
        if not self._limits.reserve(tenant, token_id):
            raise RefusedError(
                TOO_MANY, f"the token was used {WRITES_PER_TOKEN} times, as often as a token may be; ask for a new one"
            )
        verdict = None
        try:
            (verdict,) = self._outcomes.write(tenant, [outcome])
        finally:
            if verdict is None or verdict.status != "accepted":
                self._limits.give_back(tenant, token_id)
        return verdict

    def _checked(self, fields: dict[str, Any]) -> tuple[str, str, Outcome]:
        """Tenant, token id and outcome of a write; the token is verified before any other field is read."""
        claims = self._access.verifier.verify(fields.get("token"), now_s=self._clock_ns() / 1e9)
        return claims.tenant, claims.token_id, outcome_of(fields, claims, self._access.settings.rules)

    def _check_origin(self, tenant: str, request: Request) -> None:
        """A page's origin must be one of the tenant's; what is not a page (an app, a script) sends no origin."""
        origin = request.headers.get("origin")
        if origin is None or origin in self._access.settings.origins.get(tenant, ()) or _is_own(origin, request):
            return
        message = f"pages of {origin} may not send outcomes of this tenant; add it to [tenants.{tenant}] outcome_origins"
        raise TokenError(FORBIDDEN, message)

    def _readable(self, response: Response, request: Request) -> Response:
        """Let an allowed page read the answer, and a refusal too."""
        response.headers["vary"] = "origin"
        if (origin := request.headers.get("origin")) in self._access.all_origins and origin is not None:
            response.headers["access-control-allow-origin"] = origin
        return response


class _PageRequest(HttpRequest):
    """A request with a token in its body and no API key; how often it may come is decided by its network address."""

    needs_key = False

    def __init__(self, request: Request, check_rate: Callable[[Request], None]) -> None:
        super().__init__(request, "outcomes", Traffic.OUTCOMES, limit=MAX_BODY_BYTES, count=NoCount)
        self._check_rate = check_rate
        self.address = network_of(request.client.host if request.client else "unknown")

    def check(self) -> None:
        self._check_rate(self._request)

    def expected_bytes(self) -> int:
        """None before they come: who announces much and sends nothing would take the room of others."""
        super().expected_bytes()
        return 0


def _is_own(origin: str, request: Request) -> bool:
    """Whether the page came from this collector: the one behind a feedback link does."""
    return request.url.path == CONFIRM_PATH and origin.partition("://")[2] == request.headers.get("host")


def _from_json(raw: bytes, request: Request) -> dict[str, Any]:
    check_content_type(request.headers.get("content-type"))
    fields = load_json(raw)
    if not isinstance(fields, dict):
        raise RecordError(f"the body is {type(fields).__name__}; it must be a JSON object with 'token', 'name' and 'value'")
    return fields


def _from_form(raw: bytes, request: Request) -> dict[str, Any]:
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=_MAX_FORM_FIELDS)
    except ValueError as error:
        raise RecordError(f"the form cannot be read: {error}") from None
    return parse_fields(dict(pairs))
