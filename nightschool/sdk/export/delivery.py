"""One HTTP POST to the collector over a kept-alive connection, and how long to wait after a refusal.

The standard library's client is used on purpose: it brings no dependency, and OpenTelemetry's own instrumentations do
not wrap it, so that our export never appears in the app's traces.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTracePartialSuccess

from nightschool.errors import ConfigError

RETRYABLE = frozenset({0, 408, 429, 502, 503, 504})
"""Statuses after which sending again may succeed; 0 stands for no answer at all. After any other it never can."""
MAX_WAIT_S = 300.0
"""The longest wait that a server can ask for with `Retry-After`."""
_MAX_REASON_BYTES = 200
"""Of a refusal, in the log."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    """HTTP status; 0 when there was no answer."""
    body: bytes = b""
    retry_after_s: float | None = None
    reason: str = ""
    """Why there was no answer, or the first words of a refusal."""


class Delivery:
    """Posts to one collector. Only one thread may use it at a time."""

    def __init__(self, endpoint: str, api_key: str, *, timeout_s: float = 10.0) -> None:
        secure, host, port, self._prefix = parse_endpoint(endpoint)
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=timeout_s)
        self._headers = {"Authorization": f"Bearer {api_key}", "User-Agent": "nightschool-sdk"}

    def post(self, path: str, body: bytes, *, content_type: str) -> Reply:
        """Send the gzipped `body`; never raises for a network that fails."""
        headers = {**self._headers, "Content-Type": content_type, "Content-Encoding": "gzip"}
        is_reused = self._connection.sock is not None
        try:
            return self._exchange(path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            failure: Exception = error
        # The server may just have closed an idle connection. That says nothing about the server, so it is tried once
        # more.
        if is_reused and isinstance(failure, ConnectionError):
            try:
                return self._exchange(path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                failure = error
        return Reply(0, reason=f"{type(failure).__name__}: {failure}")

    def _exchange(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        self._connection.request("POST", self._prefix + path, body, headers)
        response = self._connection.getresponse()
        content = response.read()
        return Reply(
            response.status,
            content,
            retry_after_s=parse_retry_after(response.getheader("Retry-After"), now_s=time.time()),
            reason=f"{response.reason} {refusal_of(content, response.getheader('Content-Type'))}".strip(),
        )

    def close(self) -> None:
        """Close the connection; the next post opens another."""
        with contextlib.suppress(OSError):
            self._connection.close()


def refusal_of(content: bytes, content_type: str | None) -> str:
    """What the body of a refusal says, shortened."""
    text = content
    if content_type == "application/x-protobuf":
        # OTLP refuses with a google.rpc.Status, whose fields 1 and 2 are a number and a text as here.
        with contextlib.suppress(DecodeError):
            text = ExportTracePartialSuccess.FromString(content).error_message.encode()
    return text[:_MAX_REASON_BYTES].decode(errors="replace")


def parse_endpoint(endpoint: str) -> tuple[bool, str, int | None, str]:
    """Of the collector's URL: whether TLS is used, host, port and path prefix; `ConfigError` if it is not a URL."""
    try:
        url = urlsplit(endpoint)
        port = url.port
    except (ValueError, AttributeError, TypeError):
        url, port = urlsplit(""), None
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise ConfigError(f"endpoint is {endpoint!r}; it must be the collector's URL, like 'http://127.0.0.1:4318'")
    return url.scheme == "https", url.hostname, port, url.path.rstrip("/")


def parse_retry_after(value: str | None, *, now_s: float) -> float | None:
    """Seconds to wait, out of a `Retry-After` header (seconds or a date); None when absent or not understood."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now_s
        except ValueError:
            return None
    return min(max(seconds, 0.0), MAX_WAIT_S) if seconds == seconds else None


def wait_before_retry_s(attempt: int, *, retry_after_s: float | None, hurry: bool, jitter: float) -> float:
    """Seconds before attempt number `attempt + 1`: what the server asked for, else 0.5 s doubling up to 30 s.

    `jitter` in [0, 1) spreads out clients that failed at the same time. With `hurry`, because a flush or a shutdown
    waits, it is 0.5 s at most.
    """
    if retry_after_s is not None:
        return retry_after_s
    longest = 0.5 if hurry else min(30.0, 0.5 * 2 ** min(attempt, 10))
    return longest * (0.5 + jitter / 2)
