"""The hop of the clocks: times that collector, stream and serving wrote must lie within what this machine saw."""

from __future__ import annotations

from nightschool import semconv as names
from nightschool_nightly.doctor.findings import BrokenHopError, Passed
from nightschool_nightly.doctor.visit import Visit

_MAX_SKEW_MS = 5_000  # NTP keeps clocks within milliseconds; seconds mean that it is off


def check_clocks(visit: Visit) -> Passed:
    """No clock on the way differs by more than a few seconds from this machine's."""
    record, _ = visit.calls("app")[0]
    received = record.headers.get(names.HEADER_RECEIVED_MS, b"")
    skews = {"stream": _outside(record.timestamp_ms, visit.sent_ms, visit.acknowledged_ms)}
    if received.isdigit():
        skews["collector"] = _outside(int(received), visit.sent_ms, visit.acknowledged_ms)
    if servers := visit.calls("server"):
        first, last = (moment // 1_000_000 for moment in visit.asked_ns)
        skews["serving"] = _outside(servers[0][1].started_ns // 1_000_000, first, last)
    text = ", ".join(f"{name} {skew / 1000:+.1f} s" for name, skew in skews.items())
    if any(abs(skew) > _MAX_SKEW_MS for skew in skews.values()):
        raise BrokenHopError(
            f"clocks differ from this machine's: {text}", "set the clocks (NTP): corrections of outcomes are ordered by time"
        )
    return Passed(f"differences from this machine's clock: {text}")


def _outside(moment: int, first: int, last: int) -> int:
    """How far `moment` is before `first` (negative) or after `last`; 0 between them."""
    return min(0, moment - first) + max(0, moment - last)
