"""Sends server spans to the collector from a thread of its own.

An answer never waits for it: what does not fit into the queues is dropped and counted. A tenant whose spans the
collector does not take now waits by itself; the spans of the others go on.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from nightschool_serving.telemetry.queues import TENANT_BYTES, TOTAL_BYTES, SpanQueue, SpanQueues
from nightschool_serving.telemetry.spans import ServedRequest, to_export_request

_MAX_BATCH = 128  # spans in one request; with their token ids still far below what a collector accepts
_WAIT_SECONDS = 0.2  # how long the first span of a batch waits for others, so that one request carries several
_ATTEMPTS = 5  # with doubling pauses from 0.5 s: 7.5 s in all, enough for a collector to restart
_TIMEOUT_SECONDS = 10.0  # as the official exporters
_RETRY = {408, 429, 500, 502, 503, 504}  # statuses after which the same request may succeed

_logger = logging.getLogger(__name__)


class Telemetry:
    """Bounded queues and one thread. Every span is sent with the key of the client whose request it describes."""

    def __init__(
        self,
        collector: str,
        *,
        tenant_bytes: int = TENANT_BYTES,
        total_bytes: int = TOTAL_BYTES,
        retry_seconds: float = 0.5,
    ) -> None:
        self._endpoint = urlsplit(collector.rstrip("/"))
        self._retry_seconds = retry_seconds
        self._queues = SpanQueues(tenant_bytes, total_bytes)
        self._changed = threading.Condition()
        """Guards the queues and the fields below."""
        self._closing = False
        self.sent = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="nightschool-telemetry", daemon=True)
        self._thread.start()

    def record(self, request: ServedRequest) -> None:
        """Hand over a finished request; returns at once."""
        with self._changed:
            if (full := self._queues.put(request, time.monotonic() + _WAIT_SECONDS)) is not None:
                self._drop(1, full)
            self._changed.notify()

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Send what is queued, each span at most once more, for at most `timeout_seconds`; may be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while (due := self._next()) is not None:
            queue, requests = due
            reason, may_pass = self._send(queue.key, requests)
            with self._changed:
                if reason is None:
                    self.sent += len(requests)
                    self._queues.remove(queue, len(requests))
                    continue
                queue.attempts += 1
                if not may_pass or self._closing or queue.attempts >= _ATTEMPTS:
                    self._queues.remove(queue, len(requests))
                    self._drop(len(requests), reason)
                else:
                    queue.due_s = time.monotonic() + self._retry_seconds * 2 ** (queue.attempts - 1)

    def _next(self) -> tuple[SpanQueue, list[ServedRequest]] | None:
        """The next spans to send, once it is time for them; None at the end."""
        with self._changed:
            while True:
                queue, now_s = self._queues.first(), time.monotonic()
                if queue is None and self._closing:
                    return None
                if queue is not None and (self._closing or queue.due_s <= now_s):
                    return queue, self._queues.head(queue, _MAX_BATCH)
                self._changed.wait(None if queue is None else queue.due_s - now_s)

    def _send(self, key: tuple[str, str], requests: Sequence[ServedRequest]) -> tuple[str | None, bool]:
        """None when they were taken; or why not, and whether the same request may succeed later."""
        tenant, authorization = key
        body = gzip.compress(to_export_request(tenant, requests).SerializeToString(), compresslevel=1)
        try:
            status = self._post(body, authorization)
        except (OSError, http.client.HTTPException) as error:
            return f"the collector cannot be reached: {error}", True
        if status < 300:
            return None, False
        return f"the collector answered {status}", status in _RETRY

    def _post(self, body: bytes, authorization: str) -> int:
        secure = self._endpoint.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._endpoint.netloc, timeout=_TIMEOUT_SECONDS)
        try:
            headers = {
                "Authorization": authorization,
                "Content-Type": "application/x-protobuf",
                "Content-Encoding": "gzip",
            }
            connection.request("POST", f"{self._endpoint.path}/v1/traces", body, headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def _drop(self, count: int, reason: str) -> None:
        self.dropped += count
        dropped = self.dropped
        # At powers of two: the first loss is logged at once, and a lasting one does not fill the log.
        if dropped & (dropped - 1) == 0 or count > 1:
            _logger.warning("%d server spans lost so far: %s", dropped, reason)
