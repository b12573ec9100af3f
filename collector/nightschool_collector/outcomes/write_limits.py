"""How often browser tokens may be used: so many writes a token, so many a minute from one network address.

Kept in the memory of one process and bounded: with several collectors each allows as much, and the oldest entries are forgotten
first. Neither limit keeps anybody's data apart (the signature does); they keep a stolen token or a loop from filling the log.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict

WRITES_PER_TOKEN = 20
REMEMBERED = 65_536


class WriteLimits:
    """Counts writes. Safe to use from several threads."""

    def __init__(self, *, per_minute: int, per_token: int = WRITES_PER_TOKEN, num_remembered: int = REMEMBERED) -> None:
        self._per_minute, self._per_token, self._num_remembered = per_minute, per_token, num_remembered
        self._lock = threading.Lock()
        self._writes: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str, *, now_s: float) -> float:
        """Count one request of `address`; above 0, how long it must wait instead.

        A bucket that holds a minute's requests and refills evenly.
        """
        address, per_second = _network_of(address), self._per_minute / 60
        with self._lock:
            left, at = self._left.pop(address, (float(self._per_minute), now_s))
            left = min(float(self._per_minute), left + max(0.0, now_s - at) * per_second)
            wait_s = 0.0 if left >= 1 else (1 - left) / per_second
            self._left[address] = (left if wait_s else left - 1, now_s)
            if len(self._left) > self._num_remembered:
                self._left.popitem(last=False)
            return wait_s

    def reserve(self, tenant: str, token_id: str) -> bool:
        """Count one write of the token; False when it has had them all."""
        with self._lock:
            writes = self._writes.pop((tenant, token_id), 0)
            is_allowed = writes < self._per_token
            self._writes[tenant, token_id] = writes + 1 if is_allowed else writes
            if len(self._writes) > self._num_remembered:
                self._writes.popitem(last=False)
            return is_allowed

    def give_back(self, tenant: str, token_id: str) -> None:
        """Nothing was written after all."""
        with self._lock:
            if writes := self._writes.get((tenant, token_id), 0):
                self._writes[tenant, token_id] = writes - 1


def _network_of(address: str) -> str:
    """An IPv6 subscriber has a /64 of addresses, so that counts as one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
