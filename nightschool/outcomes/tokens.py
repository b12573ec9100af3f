"""Browser tokens: a page that has one can say how one answer turned out, without an API key.

`nsf1.<base64url(payload)>.<base64url(HMAC-SHA256)>`, made by the app in its own process and checked by the collector
with nothing but the token and the tenant's secret. A token says who may write what: these names, about this trace, as
this rater, until it expires. Its holder can change the outcomes of that rater and nothing else. Anybody can read the
payload, so it holds only ids and pseudonyms.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightschool.errors import ConfigError, RecordError, shown
from nightschool.outcomes.fields import canonical

PREFIX = "nsf1"
AUDIENCE = "nightschool.outcomes"
DEFAULT_LIFETIME_S = 30 * 86_400
MAX_TOKEN_CHARS = 4096
MAX_NAMES = 32
MIN_SECRET_BYTES = 32  # as long as the hash: RFC 2104 advises against less
CLOCK_SKEW_S = 300  # by how much the app's clock may be ahead of the collector's
_KID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_FIELDS = {"kid", "ten", "aud", "tid", "sid", "cid", "names", "src", "iat", "exp", "jti"}


class TokenError(RecordError):
    """A token does not allow what it was sent for; `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class OutcomeKey:
    """A secret that signs tokens, and the id by which tokens name it."""

    kid: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _KID.fullmatch(self.kid):
            raise ConfigError(f"the id of an outcome key is {shown(self.kid)}; it must be 1 to 32 of A-Z, a-z, 0-9, _ and -")
        if len(self.secret) < MIN_SECRET_BYTES:
            raise ConfigError(
                f"the secret of outcome key {self.kid!r} has {len(self.secret)} bytes; it needs at least {MIN_SECRET_BYTES}:"
                " 'openssl rand -base64 33' makes one"
            )


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """What a token says; times are seconds since 1970."""

    tenant: str
    trace_id: str
    names: tuple[str, ...]
    issued_at: int
    expires_at: int
    token_id: str
    kid: str = ""
    span_id: str | None = None
    conversation_id: str | None = None
    rater: str | None = None
    """Pseudonym of the rater; without one, each token is a rater of its own."""

    @property
    def source_id(self) -> str:
        """The rater of outcomes that are written with the token."""
        return self.rater or f"token:{self.token_id}"

    def target(self) -> dict[str, Any]:
        """The target of outcomes that are written with the token."""
        return {"trace_id": self.trace_id, **({"span_id": self.span_id} if self.span_id else {})}


def new_token_id() -> str:
    """96 random bits."""
    return secrets.token_urlsafe(12)


def mint_token(key: OutcomeKey, claims: TokenClaims) -> str:
    """Sign `claims` with `key`; `RecordError` for claims that no collector would accept."""
    payload = {
        "kid": key.kid,
        "ten": claims.tenant,
        "aud": AUDIENCE,
        "tid": claims.trace_id,
        "sid": claims.span_id,
        "cid": claims.conversation_id,
        "names": list(claims.names),
        "src": claims.rater,
        "iat": claims.issued_at,
        "exp": claims.expires_at,
        "jti": claims.token_id,
    }
    kept = {name: value for name, value in payload.items() if value is not None}
    _claims_of(kept)
    signed = f"{PREFIX}.{_encode(canonical(kept).encode())}"
    token = f"{signed}.{_encode(_sign(key, signed))}"
    if len(token) > MAX_TOKEN_CHARS:
        raise RecordError(
            f"the token would have {len(token)} characters; at most {MAX_TOKEN_CHARS} are allowed: name fewer outcomes"
        )
    return token


class TokenVerifier:
    """Checks tokens of several tenants, from their keys alone."""

    def __init__(self, keys: Mapping[str, Sequence[OutcomeKey]], revoked: Mapping[str, Sequence[str]] | None = None) -> None:
        """`keys` by tenant, several while one replaces another; `revoked` by tenant: 'kid:...' and 'jti:...'."""
        self._keys = {(tenant, key.kid): key for tenant, held in keys.items() for key in held}
        self._revoked = {(tenant, what) for tenant, held in (revoked or {}).items() for what in held}

    def verify(self, token: Any, *, now_s: float) -> TokenClaims:
        """The claims of a good token; `TokenError` with 401 for one that is not, 403 for one that was revoked.

        Nothing in the payload is used before the signature is checked, and no message says which part of the check
        failed.
        """
        claims = self._signed_claims(token)
        if claims.issued_at > now_s + CLOCK_SKEW_S:
            raise TokenError(401, "the token was issued in the future; set the clock of the server that mints tokens")
        if claims.expires_at <= now_s:
            raise TokenError(401, "the token has expired; ask for a new one")
        if {(claims.tenant, f"kid:{claims.kid}"), (claims.tenant, f"jti:{claims.token_id}")} & self._revoked:
            raise TokenError(403, "the token was revoked; ask for a new one")
        return claims

    def _signed_claims(self, token: Any) -> TokenClaims:
        malformed = TokenError(401, f"the token is malformed; it must be '{PREFIX}.PAYLOAD.SIGNATURE' as it was minted, uncut")
        if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARS or token.count(".") != 2 or not token.isascii():
            raise malformed
        prefix, body, signature = token.split(".")
        try:
            payload, given = json.loads(_decode(body)), _decode(signature)
        except (ValueError, RecursionError):
            raise malformed from None
        if prefix != PREFIX or not isinstance(payload, dict):
            raise malformed
        tenant, kid = payload.get("ten"), payload.get("kid")
        key = self._keys.get((tenant, kid)) if isinstance(tenant, str) and isinstance(kid, str) else None
        # An unknown key is compared too, so that the time of the answer does not tell whether a key exists.
        expected = _sign(key or _NO_KEY, f"{prefix}.{body}")
        if not hmac.compare_digest(expected, given) or key is None:
            raise TokenError(
                401, "the token's signature is not valid: it was altered, or minted with a key this collector does not have"
            )
        try:
            return _claims_of(payload)
        except RecordError as error:
            raise TokenError(401, f"the token says nothing usable: {error}") from None


def _claims_of(payload: Mapping[str, Any]) -> TokenClaims:
    """Check a payload; the same when a token is made and when it is read."""
    if unknown := sorted(set(payload) - _FIELDS):
        raise RecordError(f"unknown field {shown(unknown[0])}; allowed are {', '.join(sorted(_FIELDS))}")
    if payload.get("aud") != AUDIENCE:
        raise RecordError(f"aud is {shown(payload.get('aud'))}; it must be {AUDIENCE!r}")
    names = payload.get("names")
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_NAMES or not all(_is_text(name, 256) for name in names):
        raise RecordError(f"names is {shown(names)}; it must be a list of 1 to {MAX_NAMES} outcome names")
    for name, limit in (("kid", 32), ("ten", 63), ("jti", 64)):
        if not _is_text(payload.get(name), limit):
            raise RecordError(f"{name} is {shown(payload.get(name))}; it must be a text of 1 to {limit} bytes")
    for name, limit in (("cid", 512), ("src", 256)):
        if name in payload and not _is_text(payload[name], limit):
            raise RecordError(f"{name} is {shown(payload[name])}; it must be a text of 1 to {limit} bytes")
    for name, digits in (("tid", 32), ("sid", 16)):
        if (name == "tid" or name in payload) and not _is_hex(payload.get(name), digits):
            raise RecordError(f"{name} is {shown(payload.get(name))}; it must be {digits} lowercase hex digits, not all zero")
    issued, expires = payload.get("iat"), payload.get("exp")
    if type(issued) is not int or type(expires) is not int or not 0 <= issued < expires:
        raise RecordError(f"iat and exp are {shown(issued)} and {shown(expires)}; they must be whole seconds, exp after iat")
    return TokenClaims(
        tenant=payload["ten"],
        trace_id=payload["tid"],
        names=tuple(names),
        issued_at=issued,
        expires_at=expires,
        token_id=payload["jti"],
        kid=payload["kid"],
        span_id=payload.get("sid"),
        conversation_id=payload.get("cid"),
        rater=payload.get("src"),
    )


def load_key(source: str) -> OutcomeKey:
    """The key that a setting like 'KID=file:PATH' or 'KID=env:VARIABLE' names; its secret is in no message."""
    kid, _, where = source.partition("=")
    kind, _, name = where.partition(":")
    if kind == "env":
        text = os.environ.get(name)
        if text is None:
            raise ConfigError(f"outcome key {kid!r} should be in the environment variable {name}, which is not set")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(f"outcome key {kid!r} should be in the file {name}, which cannot be read: {reason}") from None
    return OutcomeKey(kid, text.strip().encode())


def _sign(key: OutcomeKey, text: str) -> bytes:
    return hmac.new(key.secret, text.encode(), hashlib.sha256).digest()


_NO_KEY = OutcomeKey("none", secrets.token_bytes(MIN_SECRET_BYTES))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if _encode(data) != text:  # base64 can write the same bytes in several ways; a token has only one text
        raise ValueError("not canonical")
    return data


def _is_text(value: Any, limit: int) -> bool:
    try:
        return isinstance(value, str) and 1 <= len(value.encode()) <= limit
    except UnicodeEncodeError:
        return False


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) is not None and value.strip("0") != ""
