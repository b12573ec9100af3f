"""Why a request is refused: raised anywhere on its way in, answered in one place per transport."""

from __future__ import annotations

from collections.abc import Mapping

BAD_REQUEST, UNAUTHORIZED, TOO_LARGE, UNSUPPORTED, UNAVAILABLE = 400, 401, 413, 415, 503
_REASONS = {
    BAD_REQUEST: "malformed",
    UNAUTHORIZED: "unauthorized",
    TOO_LARGE: "too_large",
    UNSUPPORTED: "unsupported",
    UNAVAILABLE: "stream",
}
REASONS = (*_REASONS.values(), "pressure", "slow", "draining", "other")
MAX_RETRY_AFTER_S = 3  # exporters that see a longer wait than their deadline drop the batch at once


class RefusedError(Exception):
    """The request is answered with `status` and `message`, and nothing of it was stored."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None, reason: str = "") -> None:
        super().__init__(message)
        # A message may quote what came, and JSON can carry lone surrogates, which no answer can.
        self.message = message.encode("utf-8", "backslashreplace").decode("utf-8")
        self.status, self.headers = status, dict(headers or {})
        self.reason = reason or _REASONS.get(status, "other")
        """The word it is counted under: one of `REASONS`."""


def retry_after_s(jitter: float) -> int:
    """Whole seconds from 1 to 3 that a client should wait; `jitter` in [0, 1) spreads clients that were refused together."""
    return 1 + int(jitter * MAX_RETRY_AFTER_S)


def too_large(size: str, limit: int) -> RefusedError:
    return RefusedError(TOO_LARGE, f"the body has {size}; at most {limit} are allowed: send smaller batches")
