"""What the collector counts, as `/metrics` shows it.

Every series is known when the collector starts (tenants and reasons are fixed), so a process keeps its numbers in one
row of an array. Several worker processes share the array: each writes its own row, and the one that answers adds all
rows up.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from threading import Lock

from nightschool.redaction import ALL_KINDS
from nightschool_collector.request.admission import Traffic
from nightschool_collector.request.refusal import REASONS

SIGNALS = ("traces", "logs", "outcomes")
NOBODY = ""  # the tenant of a request without a key of any tenant
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "nightschool_collector"
# Each is counted by tenant and signal; refusals also by reason.
_COUNTERS = {
    "accepted_requests": "Requests that were stored and acknowledged.",
    "accepted_items": "Spans, log records and outcomes that were stored and acknowledged.",
    "rejected_items": "Spans, log records and outcomes that can never be stored where they belong, written to ns.dlq.",
    "other_tenant_requests": "Acknowledged requests whose resource names another tenant than that of their key.",
    "received_bytes": "Bytes of acknowledged requests, decompressed.",
}
_REFUSED = "refused_requests"
_REDACTED = "redacted"
OWN_KIND = "own"  # all kinds of a tenant's own patterns: their names may say what is private, and are not fixed
REDACTED_KINDS = (*ALL_KINDS, "denied", "user-id", "unreadable", OWN_KIND)

Series = tuple[str, ...]


class Counters:
    """The numbers of this process, and the sum over all processes that share them."""

    def __init__(self, tenants: Iterable[str], *, num_workers: int = 1) -> None:
        self.tenants = (*tenants, NOBODY)
        named = product(_COUNTERS, self.tenants, SIGNALS)
        refused = product((_REFUSED,), self.tenants, SIGNALS, REASONS)
        redacted = product((_REDACTED,), self.tenants, REDACTED_KINDS)
        in_flight = (("in_flight", traffic) for traffic in Traffic)
        self._place: dict[Series, int] = {series: n for n, series in enumerate((*named, *refused, *redacted, *in_flight))}
        self._num_workers, self._first = num_workers, 0
        self._numbers = memoryview(mmap.mmap(-1, len(self._place) * num_workers * 8)).cast("q")
        self._lock = Lock()

    def use_row(self, index: int) -> None:
        """From now on this process is worker `index` and writes its row."""
        self._first = index * len(self._place)
        for traffic in Traffic:  # a worker that was killed could not take back what it had in flight
            self.in_flight(traffic, 0)

    def accepted(self, tenant: str, signal: str, *, items: int, rejected: int, num_bytes: int) -> None:
        """One stored and acknowledged request."""
        added = {"accepted_requests": 1, "accepted_items": items, "rejected_items": rejected, "received_bytes": num_bytes}
        with self._lock:
            for name, number in added.items():
                self._numbers[self._first + self._place[name, tenant, signal]] += number

    def named_another(self, tenant: str, signal: str) -> None:
        """One request with a key of `tenant` whose resource names another one."""
        with self._lock:
            self._numbers[self._first + self._place["other_tenant_requests", tenant, signal]] += 1

    def refused(self, tenant: str, signal: str, reason: str) -> None:
        """One refused request."""
        reason = reason if reason in REASONS else "other"
        with self._lock:
            self._numbers[self._first + self._place[_REFUSED, tenant, signal, reason]] += 1

    def redacted(self, tenant: str, found: Mapping[str, int]) -> None:
        """Findings that were replaced, by kind."""
        with self._lock:
            for kind, number in found.items():
                kind = kind if kind in REDACTED_KINDS else OWN_KIND
                self._numbers[self._first + self._place[_REDACTED, tenant, kind]] += number

    def in_flight(self, traffic: Traffic, num_bytes: int) -> None:
        """Bytes that this process has in flight now."""
        self._numbers[self._first + self._place["in_flight", traffic]] = num_bytes

    def total(self, *series: str) -> int:
        """The number of a series, summed over the workers."""
        at = self._place[series]
        return sum(self._numbers[at + worker * len(self._place)] for worker in range(self._num_workers))

    def text(self, *, by_tenant: bool) -> str:
        """The numbers in Prometheus' text format; split by tenant, with their names, only if `by_tenant`."""
        lines: list[str] = []
        for name, meaning in (*_COUNTERS.items(), (_REFUSED, "Requests that were refused; nothing of them was stored.")):
            lines += (f"# HELP {_PREFIX}_{name}_total {meaning}", f"# TYPE {_PREFIX}_{name}_total counter")
            lines += self._samples(name, self._split(by_tenant))
        lines += (
            f"# HELP {_PREFIX}_{_REDACTED}_total Secrets and personal data replaced before storing, and user ids made pseudonyms.",
            f"# TYPE {_PREFIX}_{_REDACTED}_total counter",
        )
        for label, tenants in self._split(by_tenant):
            for kind in REDACTED_KINDS:
                if number := sum(self.total(_REDACTED, tenant, kind) for tenant in tenants):
                    lines.append(f'{_PREFIX}_{_REDACTED}_total{{{label}kind="{kind}"}} {number}')
        lines += (
            f"# HELP {_PREFIX}_in_flight_bytes Bytes admitted and not yet answered.",
            f"# TYPE {_PREFIX}_in_flight_bytes gauge",
        )
        lines += (f'{_PREFIX}_in_flight_bytes{{lane="{traffic}"}} {self.total("in_flight", traffic)}' for traffic in Traffic)
        return "\n".join(lines) + "\n"

    def _split(self, by_tenant: bool) -> list[tuple[str, Sequence[str]]]:
        """Label and members of each group of tenants that is shown as one."""
        if not by_tenant:
            return [("", self.tenants)]
        return [(f'tenant="{tenant}",', (tenant,)) for tenant in self.tenants]

    def _samples(self, name: str, split: list[tuple[str, Sequence[str]]]) -> Iterator[str]:
        for (label, tenants), signal in product(split, SIGNALS):
            for reason in REASONS if name == _REFUSED else ("",):
                rest = (signal, reason) if reason else (signal,)
                total = sum(self.total(name, tenant, *rest) for tenant in tenants)
                labels = f'{label}signal="{signal}"' + (f',reason="{reason}"' if reason else "")
                yield f"{_PREFIX}_{name}_total{{{labels}}} {total}"
