"""Hops of an outcome: sent, and in the stream."""

from __future__ import annotations

from collections.abc import Sequence

from nightschool import semconv as names
from nightschool.stream import StoredRecord
from nightschool_nightly.doctor.findings import BrokenHopError, Passed
from nightschool_nightly.doctor.hops.shared import check_tenant
from nightschool_nightly.doctor.visit import FLUSH_TIMEOUT_S, RATER, Visit


def send_outcome(visit: Visit) -> Passed:
    """Send an outcome of every name that a rubric reads, as an app does: about the response, or the trace."""
    target = {"response_id": visit.response_id} if visit.response_id else {"trace_id": visit.trace_id}
    for name, event_id in visit.outcome_ids.items():
        visit.client.outcome(name, final_text=visit.final_text, rater=RATER, event_id=event_id, **target)  # type: ignore[arg-type]
    in_time, outcomes = visit.client.flush(FLUSH_TIMEOUT_S), visit.client.stats().outcomes
    if lost := outcomes.rejected + outcomes.dropped + outcomes.invalid:
        raise BrokenHopError(
            f"{lost} of {len(visit.outcome_ids)} outcomes were refused for good ({outcomes})",
            f"POST {visit.collector}/v1/outcomes must be our collector's; the OpenTelemetry Collector has no such route",
        )
    if not in_time or not outcomes.sent:
        raise BrokenHopError(f"no acknowledgement within {FLUSH_TIMEOUT_S:.0f} s ({outcomes})", "look at the collector's log")
    return Passed(f"durable: {', '.join(visit.outcome_ids)}")


def check_outcome_record(visit: Visit) -> Passed:
    """The outcomes come into the configured stream in time, under the tenant."""
    event_ids = [event_id.encode() for event_id in visit.outcome_ids.values()]

    def are_there(found: Sequence[StoredRecord]) -> bool:
        values = [record.value for record in found if record.topic == names.TOPIC_OUTCOMES]
        return all(any(event_id in value for value in values) for event_id in event_ids)

    if not visit.follower.wait(visit.marks, are_there, timeout_s=visit.options.wait_s):
        raise BrokenHopError(
            f"outcomes were acknowledged but are not in {visit.config.stream.url}",
            "outcomes go to another collector than spans; send both to the same",
        )
    records = visit.follower.of(names.TOPIC_OUTCOMES)
    check_tenant(visit, records)
    return Passed(f"{records[0].topic} partition {records[0].partition}, offset {records[0].offset}")
