"""The bounded background export of spans and outcomes to the collector.

An app's thread only appends to a queue in memory: no encoding, no network, no waiting. One daemon thread encodes, batches by
bytes, compresses, sends and retries, at a pace that leaves the interpreter to the app. When the queue is full the newest spans
are dropped and counted; an outcome is dropped only when there is no span left to drop for it, because a span is one of
thousands and an outcome is one of a kind.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from nightschool.sdk.encoding import SpanEncoder
from nightschool.sdk.export.delivery import RETRYABLE, Delivery, Reply, wait_before_retry_s
from nightschool.sdk.export.pace import Pace
from nightschool.sdk.export.queue import Lane, LaneStats, Payload, encode_batch
from nightschool.sdk.shield import Shield
from nightschool.sdk.span import SpanRecord

DEFAULT_MAX_QUEUE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of everything handed to nightschool in this process."""

    spans: LaneStats = field(default_factory=LaneStats)
    outcomes: LaneStats = field(default_factory=LaneStats)
    retries: int = 0
    """Requests that will be, or were, sent again."""
    internal_errors: int = 0
    """Errors of ours that were kept from the app."""


# Not the module's generator: that one is the app's, which may have seeded it to draw the same numbers again.
_system_random = random.SystemRandom()


class Exporter:
    """Sends spans and outcomes in the background; safe to use from any thread, after a fork and inside a finalizer."""

    def __init__(
        self,
        make_delivery: Callable[[], Delivery],
        encoder: SpanEncoder,
        *,
        scrub_outcome: Callable[[bytes], bytes] = bytes,
        max_queue_bytes: int = DEFAULT_MAX_QUEUE_BYTES,
        shield: Shield | None = None,
    ) -> None:
        """`scrub_outcome` takes secrets out of the JSON of an outcome, as `encoder` does of spans."""
        self._make_delivery = make_delivery
        self._encoder = encoder
        self._scrub_outcome = scrub_outcome
        self._max_queue_bytes = max_queue_bytes
        self._shield = shield or Shield()
        self._is_closing = False
        self._is_closed = False
        self._start_afresh()
        _exporters.add(self)

    def _start_afresh(self) -> None:
        """Empty queues, no thread and no connection: at construction, and in a forked child (the parent sends its own)."""
        self._spans: Lane[SpanRecord] = Lane(
            name="spans",
            path="/v1/traces",
            content_type="application/x-protobuf",
            encode=self._encoder.encode,
            wrap=self._encoder.wrap,
            max_batch_items=8192,
            splits_on=frozenset({413}),
        )
        self._outcomes: Lane[bytes] = Lane(
            name="outcomes",
            path="/v1/outcomes",
            content_type="application/json",
            encode=self._scrub_outcome,
            wrap=_wrap_outcomes,
            max_batch_items=1000,
            splits_on=frozenset({400, 413}),
        )
        # Reentrant: the garbage collector may finish an abandoned stream, hence end a span, while this thread holds it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._delivery = self._make_delivery()
        self._thread: threading.Thread | None = None
        self._pace = Pace(self._is_hurried)
        self._num_flushing = 0
        self._num_retries = 0

    # --- any thread of the app ------------------------------------------------------------------------------------------
    def put_span(self, span: SpanRecord) -> None:
        """Queue one finished span."""
        size = span.num_bytes()
        lane = self._spans
        with self._lock:
            if self._is_closing or self._outcomes.num_bytes + lane.num_bytes + size > self._max_queue_bytes:
                self._refuse(lane)
            elif lane.put(span, size):
                self._wake()

    def put_outcome(self, body: bytes) -> None:
        """Queue one outcome: the JSON of a record for `POST /v1/outcomes`."""
        size = len(body) + 64
        with self._changed:
            while self._spans.waiting and self._num_bytes + size > self._max_queue_bytes:
                self._spans.drop_newest()
            if self._is_closing or self._num_bytes + size > self._max_queue_bytes:
                self._refuse(self._outcomes)
            elif self._outcomes.put(body, size):
                self._wake()

    def count_invalid_outcome(self) -> None:
        """An outcome was not understood and is not queued."""
        with self._changed:
            self._outcomes.num_put += 1
            self._outcomes.invalid += 1

    def flush(self, timeout_s: float) -> bool:
        """Send what was put until now without lingering; False when that took longer than `timeout_s`."""
        with self._changed:
            targets = [(lane, lane.num_put) for lane in self._lanes]
            self._hurry()
            try:
                return self._changed.wait_for(
                    lambda: self._is_closed or all(lane.num_settled >= target for lane, target in targets), timeout_s
                )
            finally:
                self._num_flushing -= 1

    def shutdown(self, timeout_s: float) -> bool:
        """Flush, then take nothing more; what is not out in time is dropped and counted. Calling it again does nothing."""
        with self._changed:
            self._is_closing = True
        is_flushed = self.flush(timeout_s)
        with self._changed:
            for lane in self._lanes:
                lane.abandon()
            self._is_closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread and thread.is_alive() and is_flushed:
            thread.join(timeout_s)
        return is_flushed

    def stats(self) -> Stats:
        with self._changed:
            return Stats(self._spans.stats(), self._outcomes.stats(), self._num_retries, self._shield.num_errors)

    @property
    def _lanes(self) -> tuple[Lane[bytes], Lane[SpanRecord]]:
        return self._outcomes, self._spans  # in order of service

    @property
    def _num_bytes(self) -> int:
        return self._outcomes.num_bytes + self._spans.num_bytes

    def _is_hurried(self) -> bool:
        """Whether the exporter's thread must not rest: somebody waits for it, or the queue is half full."""
        return self._num_flushing > 0 or self._is_closing or 2 * self._num_bytes > self._max_queue_bytes

    def _refuse(self, lane: Lane[SpanRecord] | Lane[bytes]) -> None:
        lane.num_put += 1
        lane.dropped += 1
        self._shield.log_once(f"{lane.name} are dropped: the queue of {self._max_queue_bytes} bytes is full or closed")

    def _wake(self) -> None:
        """Let the exporter's thread look; the first time, start it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nightschool-exporter", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _hurry(self) -> None:
        """Cut lingering and our own back-off short; a wait the server asked for stands."""
        self._num_flushing += 1
        for lane in self._lanes:
            if not lane.is_told_to_wait:
                lane.retry_at = 0.0
        self._changed.notify_all()

    # --- the exporter's own thread --------------------------------------------------------------------------------------
    def _run(self) -> None:
        while (lane := self._next_due()) is not None:
            with self._shield:
                self._send(lane)
                continue
            with self._changed:  # a swallowed error: this batch must not come back for ever
                lane.give_up_taken()
                self._changed.notify_all()
        self._delivery.close()

    def _next_due(self) -> Lane[SpanRecord] | Lane[bytes] | None:
        """Wait for the lane that should send next, outcomes before spans; None when closed."""
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                due = [(lane.due_at(hurry=self._num_flushing > 0), lane) for lane in self._lanes]
                for at, lane in due:
                    if at <= now:
                        return lane
                wait_s = min(at for at, _ in due) - now
                self._changed.wait(None if wait_s == float("inf") else wait_s)
            return None

    def _send(self, lane: Lane[Any]) -> None:
        """Send one request of `lane` and settle what is in it, or put off the retry."""
        if not lane.payloads:
            self._encode_next(lane)
        if not lane.payloads:
            return
        payload = lane.payloads[0]
        reply = self._delivery.post(lane.path, payload.body, content_type=lane.content_type)
        halves = self._halves(lane, payload) if reply.status in lane.splits_on else []
        with self._changed:
            if self._is_closed:
                return
            if reply.status in RETRYABLE:
                self._put_off(lane, reply)
            else:
                lane.attempts = 0
                lane.payloads.popleft()
                if halves:
                    lane.payloads.extendleft(reversed(halves))
                else:
                    self._settle(lane, payload, reply)
            self._changed.notify_all()

    def _encode_next(self, lane: Lane[Any]) -> None:
        with self._changed:
            items = lane.take()
            lane.retry_at, lane.is_told_to_wait = 0.0, False
        self._pace.start()
        payloads, errors = encode_batch(lane, items, self._pace)
        with self._changed:
            if self._is_closed:
                return
            lane.payloads.extend(payloads)
            lane.invalid += len(errors)
            lane.settle(len(errors))
            self._changed.notify_all()
        for error in errors:
            self._shield.log_once(f"one of the {lane.name} cannot be encoded and is left out: {error}")

    def _halves(self, lane: Lane[Any], payload: Payload[Any]) -> list[Payload[Any]]:
        """A refused request as two; nothing for one record, which alone is to blame."""
        middle = len(payload.items) // 2
        parts = (payload.items[:middle], payload.items[middle:]) if middle else ()
        return [half for part in parts for half in encode_batch(lane, part, self._pace)[0]]

    def _put_off(self, lane: Lane[Any], reply: Reply) -> None:
        wait_s = wait_before_retry_s(
            lane.attempts,
            retry_after_s=reply.retry_after_s,
            hurry=self._num_flushing > 0,
            jitter=_system_random.random(),
        )
        lane.attempts += 1
        lane.retry_at = time.monotonic() + wait_s
        lane.is_told_to_wait = reply.retry_after_s is not None
        self._num_retries += 1
        reason = reply.status or f"no answer, {reply.reason}"
        self._shield.log_once(f"the collector does not take {lane.name} now ({reason}); trying until it does")

    def _settle(self, lane: Lane[Any], payload: Payload[Any], reply: Reply) -> None:
        num_items = len(payload.items)
        if 200 <= reply.status < 300:
            count = _num_rejected_spans if lane is self._spans else _num_rejected_outcomes
            num_rejected = min(count(reply.body), num_items)
            lane.sent += num_items - num_rejected
            lane.rejected += num_rejected
            if num_rejected:
                self._shield.log_once(f"the collector rejected some {lane.name}: {reply.body[:500]!r}")
        else:
            lane.rejected += num_items
            self._shield.log_once(f"the collector refused {lane.name} for good: {reply.status} {reply.reason}")
        lane.settle(num_items)


# --- helpers ------------------------------------------------------------------------------------------------------------
def _wrap_outcomes(bodies: Sequence[bytes]) -> Iterator[bytes]:
    yield b'{"outcomes":['
    for number, body in enumerate(bodies):
        yield b"," + body if number else body
    yield b"]}"


def _num_rejected_spans(body: bytes) -> int:
    try:
        return int(ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans)
    except DecodeError:  # an answer in another format still means 200
        return 0


def _num_rejected_outcomes(body: bytes) -> int:
    """How many items of a batch were not stored and never will be: each has a status of its own."""
    try:
        statuses = [item["status"] for item in json.loads(body)["outcomes"]]
    except (ValueError, KeyError, TypeError):  # an answer in another format still means 202
        return 0
    return sum(status in ("rejected", "conflict") for status in statuses)


_exporters: weakref.WeakSet[Exporter] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for exporter in _exporters:
        exporter._delivery.close()  # the child's copy of the socket; the parent goes on using its own
        exporter._start_afresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
