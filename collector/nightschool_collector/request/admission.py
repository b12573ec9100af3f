"""Admission by bytes in flight: they are bounded for each tenant, for each kind of traffic and for the process.

A request is counted from before its body is read until it is answered. Outcomes have a budget of their own: they are
few and small, cannot be sampled again, and must be accepted while spans are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import TypeVar

from nightschool_collector.request.refusal import UNAVAILABLE, RefusedError

# What one request costs beside its body (a connection's buffers, the request, a task), so that many tiny requests are
# bounded too.
FLOOR_BYTES = 16 << 10

K = TypeVar("K")
Hold = Callable[[int], None]
"""Reserves at least so many bytes for a request, or raises `RefusedError`: `Reservation.hold`."""


class Traffic(StrEnum):
    """The kinds of traffic; each has its own budget and threads. The values are the label `lane` of the metrics."""

    SPANS = "spans"
    """Traces and logs."""
    OUTCOMES = "outcomes"
    """What comes to `/v1/outcomes` and the routes below it."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """The most bytes in flight; each at least as large as the largest body, so that every body can be accepted when
    nothing else is in flight."""

    spans: int
    """Of all tenants together."""
    spans_per_tenant: int
    outcomes: int
    """Of all tenants together; one tenant may use half of it, and all requests without a key the other half."""

    def of(self, traffic: Traffic) -> tuple[int, int]:
        """The budget of this traffic for all tenants together, and for one tenant."""
        if traffic is Traffic.SPANS:
            return self.spans, self.spans_per_tenant
        return self.outcomes, self.outcomes // 2

    @property
    def of_address(self) -> int:
        """The most for requests of outcomes without a key from one network address: an eighth of what all such have."""
        return self.outcomes // 16


class Reservation:
    """One request's share of the budgets; it grows when the body turns out larger than announced."""

    def __init__(self, admission: Admission, traffic: Traffic, tenant: str, address: str) -> None:
        self._admission, self._traffic, self._tenant, self._address, self._held = admission, traffic, tenant, address, 0

    def hold(self, num_bytes: int) -> None:
        """Reserve at least `num_bytes` in all; `RefusedError` (503) if the budget has not so many left.

        A request that is larger than a whole budget (small spans under a large resource grow when they are split)
        reserves the whole budget: it is accepted when nothing else is in flight.
        """
        num_bytes = min(num_bytes, *self._admission.budgets.of(self._traffic))
        if self._address:
            num_bytes = min(num_bytes, self._admission.budgets.of_address)
        if num_bytes > self._held:
            self._admission._take(self._traffic, self._tenant, self._address, num_bytes - self._held)
            self._held = num_bytes

    def release(self) -> None:
        """Give everything back."""
        self._admission._give_back(self._traffic, self._tenant, self._address, self._held)
        self._held = 0


class Admission:
    """Counts the bytes in flight. Safe to use from several threads."""

    def __init__(self, budgets: Budgets, *, gauge: Callable[[Traffic, int], None] = lambda traffic, num_bytes: None) -> None:
        """`gauge` is called with the bytes in flight of a traffic whenever they change."""
        self.budgets, self._gauge = budgets, gauge
        self._lock = Lock()
        self._by_traffic: Counter[Traffic] = Counter()
        self._by_tenant: Counter[tuple[Traffic, str]] = Counter()
        self._by_address: Counter[str] = Counter()

    @contextmanager
    def reserve(self, traffic: Traffic, tenant: str, num_bytes: int, *, address: str = "") -> Iterator[Reservation]:
        """Admit a request of `num_bytes` (0 if unknown) of `tenant` for as long as the block runs.

        `address` is where a request without a key comes from: what one address has in flight is bounded too.
        """
        reservation = Reservation(self, traffic, tenant, address)
        try:
            reservation.hold(max(num_bytes, FLOOR_BYTES))
            yield reservation
        finally:
            reservation.release()

    def in_flight(self, traffic: Traffic) -> int:
        """Bytes admitted and not yet answered."""
        return self._by_traffic[traffic]

    def _take(self, traffic: Traffic, tenant: str, address: str, num_bytes: int) -> None:
        of_all, of_tenant = self.budgets.of(traffic)
        with self._lock:
            if self._by_traffic[traffic] + num_bytes > of_all:
                raise _full(f"{of_all} bytes of {traffic} are in flight")
            if self._by_tenant[traffic, tenant] + num_bytes > of_tenant:
                raise _full(f"{of_tenant} bytes of your {traffic} are in flight")
            if address and self._by_address[address] + num_bytes > self.budgets.of_address:
                raise _full(f"{self.budgets.of_address} bytes from your network address are in flight")
            self._by_traffic[traffic] += num_bytes
            self._gauge(traffic, self._by_traffic[traffic])
            self._by_tenant[traffic, tenant] += num_bytes
            if address:
                self._by_address[address] += num_bytes

    def _give_back(self, traffic: Traffic, tenant: str, address: str, num_bytes: int) -> None:
        with self._lock:
            self._by_traffic[traffic] -= num_bytes
            self._gauge(traffic, self._by_traffic[traffic])
            _lower(self._by_tenant, (traffic, tenant), num_bytes)
            if address:
                _lower(self._by_address, address, num_bytes)


def _lower(held: Counter[K], key: K, num_bytes: int) -> None:
    """Take `num_bytes` away; who has nothing in flight takes no memory."""
    held[key] -= num_bytes
    if not held[key]:
        del held[key]


def _full(what: str) -> RefusedError:
    return RefusedError(UNAVAILABLE, f"up to {what}, as many as are allowed; nothing was stored, try again", reason="pressure")
