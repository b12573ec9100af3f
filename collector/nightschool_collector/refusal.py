"""Why a request is refused: raised anywhere on its way in, answered in one place per route."""

from __future__ import annotations

from collections.abc import Mapping

BAD_REQUEST, UNAUTHORIZED, TOO_LARGE, UNSUPPORTED, UNAVAILABLE = 400, 401, 413, 415, 503


class RefusedError(Exception):
    """The request is answered with `status` and `message`, and nothing of it was stored."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        # A message may quote what came, and JSON can carry lone surrogates, which no answer can.
        self.message = message.encode("utf-8", "backslashreplace").decode("utf-8")
        self.status, self.headers = status, dict(headers or {})
