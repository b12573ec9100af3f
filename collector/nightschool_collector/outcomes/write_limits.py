"""How often browser tokens may be used: a number of writes for each token, and a rate for each network address.

The counts are in the memory of one process and bounded: with several collectors each allows as much, and the oldest
entries are forgotten first. Neither limit keeps tenants apart (the token's signature does); they keep a stolen token or
a page in a loop from filling the log.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict

WRITES_PER_TOKEN = 20  # a token is for one answer; a person who changes their mind writes a few times
REMEMBERED = 65_536  # tokens, and as many networks: the memory stays bounded whatever is sent


class WriteLimits:
    """Counts writes. Safe to use from several threads."""

    def __init__(self, *, per_minute: int, per_token: int = WRITES_PER_TOKEN, num_remembered: int = REMEMBERED) -> None:
        self._per_minute, self._per_token, self._num_remembered = per_minute, per_token, num_remembered
        self._lock = threading.Lock()
        self._writes: OrderedDict[tuple[str, str], int] = OrderedDict()
        """Writes by tenant and token id."""
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By network: how many requests it may send now, and when (in seconds) that was computed."""

    def wait_s(self, address: str, *, now_s: float) -> float:
        """Count one request of `address` and return 0; or, over the rate, the seconds after which it may come again.

        A token bucket: it holds a minute's requests and refills evenly.
        """
        network, per_second = network_of(address), self._per_minute / 60
        with self._lock:
            left, at = self._buckets.pop(network, (float(self._per_minute), now_s))
            left = min(float(self._per_minute), left + max(0.0, now_s - at) * per_second)
            wait_s = 0.0 if left >= 1 else (1 - left) / per_second
            self._buckets[network] = (left if wait_s else left - 1, now_s)
            if len(self._buckets) > self._num_remembered:
                self._buckets.popitem(last=False)
            return wait_s

    def reserve(self, tenant: str, token_id: str) -> bool:
        """Count one write of the token; False when it has no writes left."""
        with self._lock:
            writes = self._writes.pop((tenant, token_id), 0)
            is_allowed = writes < self._per_token
            self._writes[tenant, token_id] = writes + 1 if is_allowed else writes
            if len(self._writes) > self._num_remembered:
                self._writes.popitem(last=False)
            return is_allowed

    def give_back(self, tenant: str, token_id: str) -> None:
        """Take back one counted write that stored nothing."""
        with self._lock:
            if writes := self._writes.get((tenant, token_id), 0):
                self._writes[tenant, token_id] = writes - 1


def network_of(address: str) -> str:
    """The address, or for IPv6 its /64 network: one subscriber has all of a /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
