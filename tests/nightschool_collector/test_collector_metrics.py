"""`/metrics`: what was received, accepted, rejected and refused, and who may see whose."""

from __future__ import annotations

import re
from typing import Any

from nightschool_collector.counters import Counters

OUTCOME = {"target": {"response_id": "r"}, "name": "n", "value": 1, "source": {"kind": "code"}}


def numbers(collector: Any, key: str = "") -> dict[str, int]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer = collector.client.get("/metrics", headers=headers)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = re.findall(r"^nightschool_collector_(\S+) (\d+)$", answer.text, flags=re.MULTILINE)
    assert len(found) == len([line for line in answer.text.splitlines() if not line.startswith("#")])
    return {name: int(number) for name, number in found}


def test_everything_is_counted_once(collector: Any, requests: Any) -> None:
    """Requests, items, bytes and reasons, by signal."""
    body = requests.spans(0, 1, 2)
    collector.post("/v1/traces", body)
    collector.post("/v1/traces", b"\xff\xff")
    collector.post("/v1/traces", b"x" * (1 << 20) + b"x")
    collector.post("/v1/logs", b"", content_encoding="br")
    collector.post("/v1/outcomes", OUTCOME, form="application/json", tenant="globex")
    collector.client.post("/v1/outcomes", content=b"{}")
    found = numbers(collector)
    expected = {
        'accepted_requests_total{signal="traces"}': 1,
        'accepted_items_total{signal="traces"}': 2,
        'rejected_items_total{signal="traces"}': 1,
        'received_bytes_total{signal="traces"}': body.ByteSize(),
        'refused_requests_total{signal="traces",reason="malformed"}': 1,
        'refused_requests_total{signal="traces",reason="too_large"}': 1,
        'refused_requests_total{signal="logs",reason="unsupported"}': 1,
        'accepted_items_total{signal="outcomes"}': 1,
        'refused_requests_total{signal="outcomes",reason="unauthorized"}': 1,
    }
    assert {name: found[name] for name in expected} == expected
    rest = {name: number for name, number in found.items() if number and name not in expected}
    assert set(rest) <= {'accepted_requests_total{signal="outcomes"}', 'received_bytes_total{signal="outcomes"}'}


def test_only_an_operator_sees_tenants(collector: Any, requests: Any) -> None:
    """Without an operator's key no tenant is named, a tenant's own key included; with it each has its own numbers."""
    collector.post("/v1/traces", requests.spans(1, 2), tenant="globex")
    for key in ("", "key-of-globex", "wrong"):
        assert "globex" not in str(numbers(collector, key))
    found = numbers(collector, "key-of-operator")
    assert found['accepted_items_total{tenant="globex",signal="traces"}'] == 2
    assert found['accepted_items_total{tenant="acme",signal="traces"}'] == 0


def test_workers_add_up() -> None:
    """Each process writes its own row of the shared numbers; each answers with the sum of all rows."""
    counters = Counters(["acme"], num_workers=3)
    for index in range(3):
        counters.use_row(index)
        counters.accepted("acme", "traces", items=10 + index, rejected=0, num_bytes=1)
    assert counters.total("accepted_items", "acme", "traces") == 33
    assert 'accepted_items_total{signal="traces"} 33' in counters.text(by_tenant=False)


def test_an_unknown_reason_is_counted_as_other() -> None:
    """A refusal with a reason that is not listed is counted as `other`."""
    counters = Counters(["acme"])
    counters.refused("acme", "outcomes", "a reason of a later version")
    assert counters.total("refused_requests", "acme", "outcomes", "other") == 1
