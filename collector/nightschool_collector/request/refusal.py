"""Why a request is refused: raised anywhere on its way in, turned into an answer in one place per transport."""

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
REASONS = (*_REASONS.values(), "too_many", "pressure", "slow", "draining", "other")
MAX_RETRY_AFTER_S = 3  # an exporter drops the batch at once when it is told to wait longer than its own deadline


class RefusedError(Exception):
    """The request is answered with `status` and `message`, and nothing of it was stored."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        reason: str = "",
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = printable(message)
        self.status = status
        self.reason = reason or _REASONS.get(status, "other")
        """The word it is counted under: one of `REASONS`."""
        self.retry_after_s = retry_after_s
        """After how many seconds the client should try again; None if it need not be told."""
        self._headers = dict(headers or {})

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers of the answer."""
        wait = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return {**self._headers, **wait}


def printable(text: str) -> str:
    """`text` without lone surrogates: a message may quote what came, JSON can carry them, and no answer can."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def too_large(size: str, limit: int) -> RefusedError:
    """The refusal of a body of `size` (in words) where `limit` bytes are allowed."""
    return RefusedError(TOO_LARGE, f"the body has {size}; at most {limit} are allowed: send smaller batches")


def retry_after_s(jitter: float) -> int:
    """Whole seconds, 1 to 3, that a client should wait; `jitter` in [0, 1) spreads clients refused at the same time."""
    return 1 + int(jitter * MAX_RETRY_AFTER_S)
