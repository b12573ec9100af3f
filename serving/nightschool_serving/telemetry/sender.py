"""Sends server spans to the collector from a thread of its own.

An answer never waits for it: what does not fit into the queue is dropped and counted.
"""

from __future__ import annotations

import gzip
import http.client
import logging
import queue
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from nightschool_serving.telemetry.spans import ServedRequest, to_export_request

MAX_QUEUED = 4096  # spans; the collector may be away for a while under load before one is lost
_MAX_BATCH = 128  # spans in one request; with their token ids still far below what a collector accepts
_WAIT_SECONDS = 0.2  # how long the first span of a batch waits for others, so that one request carries several
_ATTEMPTS = 5  # with doubling pauses from 0.5 s: 7.5 s in all, enough for a collector to restart
_TIMEOUT_SECONDS = 10.0  # as the official exporters
_RETRY = {408, 429, 500, 502, 503, 504}  # statuses after which the same request may succeed

_logger = logging.getLogger(__name__)


class Telemetry:
    """A bounded queue and one thread. Every span is sent with the key of the client whose request it describes."""

    def __init__(self, collector: str, *, max_queued: int = MAX_QUEUED, retry_seconds: float = 0.5) -> None:
        self._endpoint = urlsplit(collector.rstrip("/"))
        self._queue: queue.Queue[ServedRequest | None] = queue.Queue(max_queued)
        self._retry_seconds = retry_seconds
        self._closing = threading.Event()
        self._counting = threading.Lock()
        self.sent = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="nightschool-telemetry", daemon=True)
        self._thread.start()

    def record(self, request: ServedRequest) -> None:
        """Hand over a finished request; returns at once."""
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            self._drop(1, f"{self._queue.maxsize} spans are already waiting")

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Send what is queued, for at most `timeout_seconds`; may be called twice."""
        if not self._closing.is_set():
            self._closing.set()
            try:
                self._queue.put(None, timeout=timeout_seconds)
            except queue.Full:
                return
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ended = self._next_batch(first)
            groups: dict[tuple[str, str], list[ServedRequest]] = {}
            for request in batch:
                groups.setdefault((request.tenant, request.authorization), []).append(request)
            for (tenant, authorization), requests in groups.items():
                self._send(tenant, authorization, requests)
            if ended:
                return

    def _next_batch(self, first: ServedRequest) -> tuple[list[ServedRequest], bool]:
        """A batch, and whether the end of the queue was in it."""
        batch, deadline = [first], time.monotonic() + _WAIT_SECONDS
        while len(batch) < _MAX_BATCH:
            try:
                following = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if following is None:
                return batch, True
            batch.append(following)
        return batch, False

    def _send(self, tenant: str, authorization: str, requests: Sequence[ServedRequest]) -> None:
        body = gzip.compress(to_export_request(tenant, requests).SerializeToString(), compresslevel=1)
        for attempt in range(_ATTEMPTS):
            try:
                status = self._post(body, authorization)
            except (OSError, http.client.HTTPException) as error:
                reason = f"the collector cannot be reached: {error}"
            else:
                if status < 300:
                    self.sent += len(requests)
                    return
                reason = f"the collector answered {status}"
                if status not in _RETRY:
                    break
            if attempt + 1 < _ATTEMPTS and self._closing.wait(self._retry_seconds * 2**attempt):
                break
        self._drop(len(requests), reason)

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
        with self._counting:
            self.dropped += count
            dropped = self.dropped
        # At powers of two: the first loss is logged at once, and a lasting one does not fill the log.
        if dropped & (dropped - 1) == 0 or count > 1:
            _logger.warning("%d server spans lost so far: %s", dropped, reason)
