"""Admission by bytes in flight: what is taken in is bounded for each tenant, for each lane and for the process.

A request is counted from before its body is read until it is answered. Outcomes have a lane of their own: they are few and
small, cannot be sampled again, and must get in while spans are turned away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock

from nightschool_collector.request.refusal import UNAVAILABLE, RefusedError

# What one request costs beside its body (a connection's buffers, the request, a task); many tiny ones must not be free.
FLOOR_BYTES = 16 << 10


class Lane(StrEnum):
    """Who shares a budget."""

    SPANS = "spans"
    """Traces and logs."""
    OUTCOMES = "outcomes"
    """`POST /v1/outcomes`."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """The most bytes in flight; each at least as large as the largest body, so that every body can get in when it is quiet."""

    spans: int
    """Of all tenants together."""
    spans_per_tenant: int
    outcomes: int
    """Of all tenants together; one tenant may use half of it."""

    def of(self, lane: Lane) -> tuple[int, int]:
        """The budget of the lane and that of one tenant in it."""
        if lane is Lane.SPANS:
            return self.spans, self.spans_per_tenant
        return self.outcomes, self.outcomes // 2


class Ticket:
    """One request's share of the budgets; it grows when the body turns out larger than declared."""

    def __init__(self, admission: Admission, lane: Lane, tenant: str) -> None:
        self._admission, self._lane, self._tenant, self._held = admission, lane, tenant, 0

    def cover(self, num_bytes: int) -> None:
        """Hold at least `num_bytes`; `RefusedError` (503) if the budget has no room for them.

        A request that is more than a whole budget (small spans under a large resource grow when they are split) holds all of it:
        it gets in when it is alone.
        """
        num_bytes = min(num_bytes, *self._admission.budgets.of(self._lane))
        if num_bytes > self._held:
            self._admission._take(self._lane, self._tenant, num_bytes - self._held)
            self._held = num_bytes

    def release(self) -> None:
        self._admission._give_back(self._lane, self._tenant, self._held)
        self._held = 0


class Admission:
    """Counts the bytes in flight. Threads share it."""

    def __init__(self, budgets: Budgets, *, gauge: Callable[[Lane, int], None] = lambda lane, num_bytes: None) -> None:
        """`gauge` is told the bytes in flight of a lane whenever they change."""
        self.budgets, self._gauge = budgets, gauge
        self._lock = Lock()
        self._by_lane: Counter[Lane] = Counter()
        self._by_tenant: Counter[tuple[Lane, str]] = Counter()

    @contextmanager
    def ticket(self, lane: Lane, tenant: str, num_bytes: int) -> Iterator[Ticket]:
        """Admit a request of `num_bytes` (0 if it does not say) of `tenant` for as long as the block runs."""
        ticket = Ticket(self, lane, tenant)
        try:
            ticket.cover(max(num_bytes, FLOOR_BYTES))
            yield ticket
        finally:
            ticket.release()

    def in_flight(self, lane: Lane) -> int:
        """Bytes admitted and not yet answered."""
        return self._by_lane[lane]

    def _take(self, lane: Lane, tenant: str, num_bytes: int) -> None:
        of_lane, of_tenant = self.budgets.of(lane)
        with self._lock:
            if self._by_lane[lane] + num_bytes > of_lane:
                raise _full(lane, f"{of_lane} bytes of {lane} are in flight")
            if self._by_tenant[lane, tenant] + num_bytes > of_tenant:
                raise _full(lane, f"{of_tenant} bytes of your {lane} are in flight")
            self._by_lane[lane] += num_bytes
            self._gauge(lane, self._by_lane[lane])
            self._by_tenant[lane, tenant] += num_bytes

    def _give_back(self, lane: Lane, tenant: str, num_bytes: int) -> None:
        with self._lock:
            self._by_lane[lane] -= num_bytes
            self._gauge(lane, self._by_lane[lane])
            left = self._by_tenant[lane, tenant] - num_bytes
            if left:
                self._by_tenant[lane, tenant] = left
            else:
                del self._by_tenant[lane, tenant]  # names of the past do not pile up


def _full(lane: Lane, what: str) -> RefusedError:
    return RefusedError(UNAVAILABLE, f"up to {what}, as many as are allowed; nothing was stored, try again", reason="pressure")
