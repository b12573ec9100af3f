"""The export of spans and outcomes to the collector: in the background, and bounded in memory.

An app's thread only appends to a queue in memory: no encoding, no network, no waiting. One daemon thread encodes, makes
batches by bytes, compresses, sends and retries, at a pace that leaves the interpreter to the app. When the queue is
full the newest spans are dropped and counted. An outcome is dropped only when no span is left to drop in its place,
because a span is one of thousands and no other outcome says the same.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nightschool.sdk.encoding import SpanEncoder
from nightschool.sdk.export.backlog import Backlog
from nightschool.sdk.export.delivery import RETRYABLE, Delivery, Reply, wait_before_retry_s
from nightschool.sdk.export.pace import Pace
from nightschool.sdk.export.queue import Lane, LaneStats, Payload, encode_batch, halves_of
from nightschool.sdk.shield import Shield
from nightschool.sdk.span import SpanRecord

DEFAULT_MAX_QUEUE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of everything handed to nightschool in this process."""

    spans: LaneStats = field(default_factory=LaneStats)
    outcomes: LaneStats = field(default_factory=LaneStats)
    retries: int = 0
    """Requests that had to be sent again."""
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
        """`scrub_outcome` takes secrets out of the JSON of an outcome, as `encoder` does for spans."""
        self._make_delivery = make_delivery
        self._shield = shield or Shield()
        self._backlog = Backlog(encoder, scrub_outcome, max_bytes=max_queue_bytes, shield=self._shield)
        self._is_closed = False
        self._start_afresh()
        _exporters.add(self)

    def _start_afresh(self) -> None:
        """No thread and no connection: at construction, and in a forked child."""
        # Reentrant: while this thread holds it, the garbage collector may finish an abandoned stream, which ends a
        # span.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._delivery = self._make_delivery()
        self._thread: threading.Thread | None = None
        self._pace = Pace(self._is_hurried)
        self._num_flushing = 0
        self._num_retries = 0

    def after_fork_in_child(self) -> None:
        """Go on in a forked child without what was queued: the parent sends that."""
        self._delivery.close()  # the child's copy of the socket; the parent goes on using its own
        self._backlog.start_afresh()
        self._start_afresh()

    # --- any thread of the app ----------------------------------------------------------------------------------------
    def put_span(self, span: SpanRecord) -> None:
        """Queue one finished span."""
        size = span.num_bytes()
        with self._lock:
            if self._backlog.put_span(span, size):
                self._wake()

    def put_outcome(self, body: bytes) -> None:
        """Queue one outcome: the JSON of a record for `POST /v1/outcomes`."""
        with self._lock:
            if self._backlog.put_outcome(body):
                self._wake()

    def count_invalid_outcome(self) -> None:
        """Count an outcome that was not understood and is not queued."""
        with self._lock:
            self._backlog.count_invalid_outcome()

    def flush(self, timeout_s: float) -> bool:
        """Send at once everything put so far; False when that takes over `timeout_s`."""
        with self._changed:
            is_settled = self._backlog.settled_so_far()
            self._num_flushing += 1
            self._backlog.hurry()
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: self._is_closed or is_settled(), timeout_s)
            finally:
                self._num_flushing -= 1

    def shutdown(self, timeout_s: float) -> bool:
        """Flush, and take nothing more; what is not sent in time is dropped and counted. A second call does nothing."""
        with self._changed:
            self._backlog.is_closed = True
        is_flushed = self.flush(timeout_s)
        with self._changed:
            self._backlog.abandon()
            self._is_closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread and thread.is_alive() and is_flushed:
            thread.join(timeout_s)
        return is_flushed

    def stats(self) -> Stats:
        """What became of everything put so far."""
        with self._changed:
            return Stats(*self._backlog.stats(), self._num_retries, self._shield.num_errors)

    def _is_hurried(self) -> bool:
        """Whether the exporter's thread must not rest: when somebody waits for it, or the queue is half full."""
        return self._num_flushing > 0 or self._backlog.is_closed or self._backlog.is_filling_up

    def _wake(self) -> None:
        """Tell the exporter's thread that there is something to send; start it the first time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nightschool-exporter", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    # --- the exporter's own thread ------------------------------------------------------------------------------------
    def _run(self) -> None:
        while (lane := self._next_due()) is not None:
            with self._shield:
                self._send(lane)
                continue
            with self._changed:  # an error of ours was swallowed: give this batch up, or it would come back without end
                lane.give_up_taken()
                self._changed.notify_all()
        self._delivery.close()

    def _next_due(self) -> Lane[SpanRecord] | Lane[bytes] | None:
        """Wait for the lane that should send next, outcomes before spans; None when closed."""
        with self._changed:
            while not self._is_closed:
                lane, wait_s = self._backlog.next_due(time.monotonic(), hurry=self._num_flushing > 0)
                if lane is not None:
                    return lane
                self._changed.wait(None if wait_s == float("inf") else wait_s)
            return None

    def _send(self, lane: Lane[Any]) -> None:
        """Send one request of `lane`; then settle what is in it, or put it off."""
        if not lane.payloads:
            self._encode_next(lane)
        if not lane.payloads:
            return
        payload = lane.payloads[0]
        reply = self._delivery.post(lane.path, payload.body, content_type=lane.content_type)
        halves = halves_of(lane, payload, self._pace) if reply.status in lane.splits_on else []
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

    def _put_off(self, lane: Lane[Any], reply: Reply) -> None:
        hurry, jitter = self._num_flushing > 0, _system_random.random()
        wait_s = wait_before_retry_s(lane.attempts, retry_after_s=reply.retry_after_s, hurry=hurry, jitter=jitter)
        lane.put_off(wait_s, is_told=reply.retry_after_s is not None)
        self._num_retries += 1
        reason = reply.status or f"no answer, {reply.reason}"
        self._shield.log_once(f"the collector does not take {lane.name} now ({reason}); they are sent again until it does")

    def _settle(self, lane: Lane[Any], payload: Payload[Any], reply: Reply) -> None:
        num_items = len(payload.items)
        if 200 <= reply.status < 300:
            num_rejected = min(lane.count_rejected(reply.body), num_items)
            lane.sent += num_items - num_rejected
            lane.rejected += num_rejected
            if num_rejected:
                self._shield.log_once(f"the collector rejected some {lane.name}: {reply.body[:500]!r}")
        else:
            lane.rejected += num_items
            self._shield.log_once(f"the collector refused {lane.name} for good: {reply.status} {reply.reason}")
        lane.settle(num_items)


_exporters: weakref.WeakSet[Exporter] = weakref.WeakSet()
"""All that live in this process: a fork has to reach them."""


def _after_fork_in_child() -> None:
    for exporter in _exporters:
        exporter.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
