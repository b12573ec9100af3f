"""Everything an exporter still has to send: both lanes, under one limit on their bytes.

There is no lock and no thread in here: `nightschool.sdk.export.exporter` holds one lock around every call.
"""

from __future__ import annotations

from collections.abc import Callable

from nightschool.sdk.encoding import SpanEncoder
from nightschool.sdk.export.lanes import outcome_lane, span_lane
from nightschool.sdk.export.queue import Lane, LaneStats
from nightschool.sdk.shield import Shield
from nightschool.sdk.span import SpanRecord

_OUTCOME_OVERHEAD_BYTES = 64
"""Of an outcome in the queue, beside its JSON."""


class Backlog:
    """Spans and outcomes that wait or are on their way. When it is full, spans make room for outcomes."""

    def __init__(self, encoder: SpanEncoder, scrub_outcome: Callable[[bytes], bytes], *, max_bytes: int, shield: Shield) -> None:
        self._encoder = encoder
        self._scrub_outcome = scrub_outcome
        self._max_bytes = max_bytes
        self._shield = shield
        self.is_closed = False
        """Nothing more is taken; what comes is dropped and counted."""
        self.start_afresh()

    def start_afresh(self) -> None:
        """Empty lanes, with all counts at zero."""
        self._spans: Lane[SpanRecord] = span_lane(self._encoder)
        self._outcomes: Lane[bytes] = outcome_lane(self._scrub_outcome)
        self.lanes: tuple[Lane[bytes], Lane[SpanRecord]] = self._outcomes, self._spans
        """In the order in which they are served."""

    @property
    def num_bytes(self) -> int:
        """Of everything that waits or is on its way."""
        return self._outcomes.num_bytes + self._spans.num_bytes

    @property
    def is_filling_up(self) -> bool:
        """Whether more than half of the limit is used."""
        return 2 * self.num_bytes > self._max_bytes

    def put_span(self, span: SpanRecord, size: int) -> bool:
        """Queue one span of about `size` bytes; True when the exporter's thread must be told."""
        lane = self._spans
        if self.is_closed or self._outcomes.num_bytes + lane.num_bytes + size > self._max_bytes:
            return self._refuse(lane)
        return lane.put(span, size)

    def put_outcome(self, body: bytes) -> bool:
        """Queue one outcome, in place of the newest spans if need be; True when the exporter's thread must be told."""
        size = len(body) + _OUTCOME_OVERHEAD_BYTES
        while self._spans.waiting and self.num_bytes + size > self._max_bytes:
            self._spans.drop_newest()
        if self.is_closed or self.num_bytes + size > self._max_bytes:
            return self._refuse(self._outcomes)
        return self._outcomes.put(body, size)

    def _refuse(self, lane: Lane[SpanRecord] | Lane[bytes]) -> bool:
        lane.num_put += 1
        lane.dropped += 1
        self._shield.log_once(f"{lane.name} are dropped: the queue of {self._max_bytes} bytes is full or closed")
        return False

    def count_invalid_outcome(self) -> None:
        """Count an outcome that was not understood and is not queued."""
        self._outcomes.num_put += 1
        self._outcomes.invalid += 1

    def settled_so_far(self) -> Callable[[], bool]:
        """A question: is it known by now what became of everything that was put until this call?"""
        targets = [(lane, lane.num_put) for lane in self.lanes]
        return lambda: all(lane.num_settled >= target for lane, target in targets)

    def hurry(self) -> None:
        """End our own waits between retries; a wait that the server asked for is kept."""
        for lane in self.lanes:
            if not lane.is_told_to_wait:
                lane.retry_at = 0.0

    def next_due(self, now: float, *, hurry: bool) -> tuple[Lane[SpanRecord] | Lane[bytes] | None, float]:
        """The lane that should send `now`, else None and the seconds until one should: infinity when all are empty."""
        due = [(lane.due_at(hurry=hurry), lane) for lane in self.lanes]
        for at, lane in due:
            if at <= now:
                return lane, 0.0
        return None, min(at for at, _ in due) - now

    def abandon(self) -> None:
        """Drop and count everything that is queued or on its way."""
        for lane in self.lanes:
            lane.abandon()

    def stats(self) -> tuple[LaneStats, LaneStats]:
        """Of spans, and of outcomes."""
        return self._spans.stats(), self._outcomes.stats()
