"""Admission by bytes in flight: refused before the body is read, per tenant, per traffic, and given back whatever happens."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest

from nightschool_collector import receiver
from nightschool_collector.request import incoming
from nightschool_collector.request.admission import FLOOR_BYTES, Admission, Budgets, Traffic
from nightschool_collector.request.refusal import RefusedError

MIB = 1 << 20
ANNOUNCED = {
    "content-type": "application/x-protobuf",
    "authorization": "Bearer key-of-acme",
    "content-length": "900000",
}
OUTCOME = {"target": {"response_id": "r"}, "name": "n", "value": 1, "source": {"kind": "code"}}


@pytest.fixture
def admission() -> Admission:
    return Admission(Budgets(spans=4 * MIB, spans_per_tenant=2 * MIB, outcomes=1 * MIB))


def test_a_full_collector_refuses_by_the_declared_length(collector: Any) -> None:
    """With no room for the announced bytes the answer is 503 with a short Retry-After, and the body stays on the wire."""

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    with collector.receiver.admission.reserve(Traffic.SPANS, "acme", 2 * MIB - 100_000):
        sent = asyncio.run(collector.call("/v1/traces", ANNOUNCED, receive))
    assert sent[0]["status"] == 503
    assert dict(sent[0]["headers"])[b"retry-after"] == b"2"
    assert b"bytes of your spans are in flight" in sent[1]["body"]


def test_one_tenant_cannot_fill_the_collector(collector: Any, requests: Any) -> None:
    """A tenant that uses all it may is refused; the others get in, until the whole is full."""
    with collector.receiver.admission.reserve(Traffic.SPANS, "acme", 2 * MIB):
        assert collector.post("/v1/traces", requests.spans(1), tenant="acme").status_code == 503
        assert collector.post("/v1/traces", requests.spans(1), tenant="globex").status_code == 200
        with collector.receiver.admission.reserve(Traffic.SPANS, "another", 2 * MIB):
            assert collector.post("/v1/traces", requests.spans(1), tenant="globex").status_code == 503


def test_outcomes_get_in_while_spans_are_refused(collector: Any, requests: Any) -> None:
    """The traffic of outcomes is untouched by spans and logs, and theirs by it."""
    with (
        collector.receiver.admission.reserve(Traffic.SPANS, "acme", 2 * MIB),
        collector.receiver.admission.reserve(Traffic.SPANS, "another", 2 * MIB),
    ):
        assert collector.post("/v1/traces", requests.spans(1)).status_code == 503
        assert collector.post("/v1/outcomes", OUTCOME, form="application/json").status_code == 202
    with collector.receiver.admission.reserve(Traffic.OUTCOMES, "acme", MIB // 2):
        answer = collector.post("/v1/outcomes", OUTCOME, form="application/json")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert collector.post("/v1/traces", requests.spans(1)).status_code == 200


def test_decompression_needs_room_too(collector: Any) -> None:
    """A small body that expands past the room there is now is asked to come again, not told that it is too large."""
    zeros = gzip.compress(bytes(900_000))
    with collector.receiver.admission.reserve(Traffic.SPANS, "acme", 2 * MIB - 200_000):
        assert collector.post("/v1/traces", zeros, content_encoding="gzip").status_code == 503
    assert collector.post("/v1/traces", zeros, content_encoding="gzip").status_code == 400  # read: zeros are no protobuf


def test_room_is_given_back_whatever_happens(collector: Any, requests: Any) -> None:
    """Accepted, malformed, too large and refused requests leave nothing in flight."""
    for sent in (requests.spans(1), b"\xff", b"x" * (MIB + 1)):
        collector.post("/v1/traces", sent)
        collector.post("/v1/outcomes", sent, form="application/json")
    assert [collector.receiver.admission.in_flight(traffic) for traffic in Traffic] == [0, 0]


def test_a_tiny_request_is_not_free(admission: Admission) -> None:
    """What a request costs beside its body is counted: the number of requests is bounded, however small they are."""
    with admission.reserve(Traffic.SPANS, "acme", 1) as reservation:
        assert admission.in_flight(Traffic.SPANS) == FLOOR_BYTES
        reservation.hold(FLOOR_BYTES - 1)
        assert admission.in_flight(Traffic.SPANS) == FLOOR_BYTES
        reservation.hold(FLOOR_BYTES + 1)
        assert admission.in_flight(Traffic.SPANS) == FLOOR_BYTES + 1


def test_a_request_larger_than_the_budget_gets_in_alone(admission: Admission) -> None:
    """What grows past a whole budget when it is split holds all of it, and nobody else gets in meanwhile."""
    with (
        admission.reserve(Traffic.SPANS, "acme", 3 * MIB),
        pytest.raises(RefusedError),
        admission.reserve(Traffic.SPANS, "acme", 1),
    ):
        pass
    with (
        admission.reserve(Traffic.SPANS, "acme", 1),
        pytest.raises(RefusedError),
        admission.reserve(Traffic.SPANS, "acme", 3 * MIB),
    ):
        pass


def test_who_sends_slowly_does_not_hold_room_for_ever(collector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that never ends is given up after a while: 503, and its room is given back."""
    monkeypatch.setattr(incoming, "RECEIVE_TIMEOUT_S", 0.05)
    chunks = [{"type": "http.request", "body": b"x", "more_body": True}]

    async def receive() -> dict[str, Any]:
        if not chunks:
            await asyncio.Event().wait()
        return chunks.pop()

    sent = asyncio.run(collector.call("/v1/traces", ANNOUNCED, receive))
    assert sent[0]["status"] == 503
    assert b"was not complete after 0.05 s" in sent[1]["body"]
    assert collector.receiver.admission.in_flight(Traffic.SPANS) == 0
    assert collector.receiver.counters.total("refused_requests", "acme", "traces", "slow") == 1


def test_what_has_waited_too_long_is_not_stored(collector: Any, requests: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose client has given up by now is refused, so that those behind it are in time."""
    monkeypatch.setattr(receiver, "STALE_S", -1)
    answer = collector.post("/v1/traces", requests.spans(1))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert collector.everything_stored() == []


def test_a_collector_that_is_stopping_says_so(collector: Any, requests: Any) -> None:
    """Told to stop it is not ready, takes nothing new, and asks to come again: another collector may be there by then."""
    collector.receiver.draining = True
    assert collector.client.get("/readyz").status_code == 503
    assert collector.client.get("/healthz").status_code == 200
    for path in ("/v1/traces", "/v1/logs", "/v1/outcomes"):
        answer = collector.post(path, requests.spans(1))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert collector.everything_stored() == []


def test_what_is_in_flight_is_shown(collector: Any) -> None:
    """The gauge follows admission: an operator sees what is held."""
    seen: list[tuple[Traffic, int]] = []
    admission = Admission(Budgets(MIB, MIB, MIB), gauge=lambda traffic, num_bytes: seen.append((traffic, num_bytes)))
    with admission.reserve(Traffic.OUTCOMES, "acme", 20_000):
        pass
    assert seen == [(Traffic.OUTCOMES, 20_000), (Traffic.OUTCOMES, 0)]
