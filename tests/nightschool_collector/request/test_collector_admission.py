"""Admission by bytes in flight, by tenant and by traffic: refused before the body is read, always given back."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest

from nightschool.otlp.varint import encode_varint
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


def request_of(scope: bytes) -> bytes:
    """A request of one scope with these fields."""
    for tag in (b"\x12", b"\x0a"):
        scope = tag + encode_varint(len(scope)) + scope
    return scope


@pytest.fixture
def admission() -> Admission:
    return Admission(Budgets(spans=4 * MIB, spans_per_tenant=2 * MIB, outcomes=1 * MIB))


def test_a_full_collector_refuses_by_the_declared_length(collector: Any) -> None:
    """With no room for the announced bytes the answer is 503 with a short Retry-After, and no byte is read."""

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    with collector.receiver.admission.reserve(Traffic.SPANS, "acme", 2 * MIB - 100_000):
        sent = asyncio.run(collector.call("/v1/traces", ANNOUNCED, receive))
    assert sent[0]["status"] == 503
    assert dict(sent[0]["headers"])[b"retry-after"] == b"2"
    assert b"bytes of your spans are in flight" in sent[1]["body"]


def test_one_tenant_cannot_fill_the_collector(collector: Any, requests: Any) -> None:
    """A tenant that has used its budget is refused; the others are accepted until the whole budget is used."""
    with collector.receiver.admission.reserve(Traffic.SPANS, "acme", 2 * MIB):
        assert collector.post("/v1/traces", requests.spans(1), tenant="acme").status_code == 503
        assert collector.post("/v1/traces", requests.spans(1), tenant="globex").status_code == 200
        with collector.receiver.admission.reserve(Traffic.SPANS, "another", 2 * MIB):
            assert collector.post("/v1/traces", requests.spans(1), tenant="globex").status_code == 503


def test_outcomes_are_accepted_while_spans_are_refused(collector: Any, requests: Any) -> None:
    """The budget of outcomes is not used by spans and logs, nor theirs by outcomes."""
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


def test_decompression_needs_room_too(collector: Any, requests: Any) -> None:
    """A small body that expands past what is free now gets 503, to be sent again, and not 413."""
    zeros = gzip.compress(requests.spans(1, name="0" * 900_000).SerializeToString())
    with collector.receiver.admission.reserve(Traffic.SPANS, "acme", 2 * MIB - 200_000):
        assert collector.post("/v1/traces", zeros, content_encoding="gzip").status_code == 503
    # With enough room it is stored.
    assert collector.post("/v1/traces", zeros, content_encoding="gzip").status_code == 200


def test_what_a_body_holds_needs_room_too(collector: Any) -> None:
    """Many small items take more memory than their bytes, and so more of the budget."""
    spans = request_of(b"\x12\x00" * 5_000)  # 10 KB
    with collector.receiver.admission.reserve(Traffic.SPANS, "acme", 1 * MIB):
        assert collector.post("/v1/traces", spans).status_code == 503
    assert collector.post("/v1/traces", spans).status_code == 200


def test_reservations_end_whatever_happens(collector: Any, requests: Any) -> None:
    """Accepted, malformed, too large and refused requests leave nothing in flight."""
    for sent in (requests.spans(1), b"\xff", b"x" * (MIB + 1)):
        collector.post("/v1/traces", sent)
        collector.post("/v1/outcomes", sent, form="application/json")
    assert [collector.receiver.admission.in_flight(traffic) for traffic in Traffic] == [0, 0]


def test_a_tiny_request_is_not_free(admission: Admission) -> None:
    """What a request costs beside its body is counted too, so that the number of tiny requests is bounded."""
    with admission.reserve(Traffic.SPANS, "acme", 1) as reservation:
        assert admission.in_flight(Traffic.SPANS) == FLOOR_BYTES
        reservation.hold(FLOOR_BYTES - 1)
        assert admission.in_flight(Traffic.SPANS) == FLOOR_BYTES
        reservation.hold(FLOOR_BYTES + 1)
        assert admission.in_flight(Traffic.SPANS) == FLOOR_BYTES + 1


def test_a_request_larger_than_the_budget_is_accepted_alone(admission: Admission) -> None:
    """A request that grows past a whole budget when it is split reserves all of it, and others are refused."""
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


def test_a_slow_client_is_refused_and_its_bytes_are_given_back(collector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is not complete after the timeout is 503, and its reservation ends."""
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
    """A request whose client has given up by now is refused, so that those behind it are stored in time."""
    monkeypatch.setattr(receiver, "STALE_S", -1)
    answer = collector.post("/v1/traces", requests.spans(1))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert collector.everything_stored() == []


def test_a_collector_that_is_stopping_says_so(collector: Any, requests: Any) -> None:
    """After the signal it is not ready and answers 503: the client tries again, perhaps at another collector."""
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
