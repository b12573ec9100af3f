"""How many bytes may be in flight: what nightschool.toml says, and what it leaves open from the machine's memory."""

from __future__ import annotations

from nightschool.config.settings import CollectorConfig
from nightschool.machine import Machine
from nightschool_collector.request.admission import Budgets

# A request in flight takes a few times its bytes while it is decoded, split and redacted, so an eighth of the memory in
# bytes on the wire leaves room for that. Above 96 MiB a worker accepts no more: it stores less than that in the 10 s
# that an exporter waits for an answer, and what cannot be answered in time is better refused at once.
_MEMORY_SHARE, _MOST_MIB_PER_WORKER = 8, 96


def budgets_of(settings: CollectorConfig, machine: Machine) -> Budgets:
    """The budgets of one process; the workers divide what is allowed."""
    of_all = settings.max_in_flight_mib or _computed_mib(settings, machine)
    # Beside the whole, and never less than the largest body, or that body could not get in while nothing else is there.
    of_tenant = settings.max_in_flight_per_tenant_mib or max(settings.max_body_mib, of_all * 2 // 3)
    outcomes = settings.max_in_flight_outcomes_mib or max(1, of_all // 6)
    spans = (of_all << 20) // settings.workers
    return Budgets(spans=spans, spans_per_tenant=min(of_tenant << 20, spans), outcomes=(outcomes << 20) // settings.workers)


def _computed_mib(settings: CollectorConfig, machine: Machine) -> int:
    share = min((machine.memory_bytes // _MEMORY_SHARE) >> 20, _MOST_MIB_PER_WORKER * settings.workers)
    # Every worker has room for the largest body.
    return max(share, settings.max_body_mib * settings.workers, settings.max_in_flight_per_tenant_mib)
