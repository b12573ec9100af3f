"""How many bytes may be in flight on machines of different sizes."""

from __future__ import annotations

import pytest

from nightschool.config.settings import CollectorConfig
from nightschool.machine import Machine
from nightschool_collector.request.budgets import budgets_of

MIB, GIB = 1 << 20, 1 << 30


def machine(memory: int) -> Machine:
    return Machine(cores=2, memory_bytes=memory, available_bytes=memory, has_bf16=False, name="")


@pytest.mark.parametrize(
    ("memory", "settings", "spans", "of_tenant", "outcomes"),
    [
        (24 * GIB, CollectorConfig(), 96, 64, 16),
        (GIB, CollectorConfig(max_body_mib=8), 96, 64, 16),
        (GIB // 4, CollectorConfig(max_body_mib=8), 32, 21, 5),
        (GIB // 8, CollectorConfig(max_body_mib=1, workers=2), 8, 8, 1),
    ],
)
def test_small_machines_take_less_at_a_time(
    memory: int, settings: CollectorConfig, spans: int, of_tenant: int, outcomes: int
) -> None:
    """Of an eighth of the memory, at most what is worth accepting; a tenant has two thirds of it, outcomes a sixth."""
    found = budgets_of(settings, machine(memory))
    assert [value // MIB for value in (found.spans, found.spans_per_tenant, found.outcomes)] == [spans, of_tenant, outcomes]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_largest_body_gets_into_every_worker(workers: int) -> None:
    """On a small machine the limit is the body's, or a client would wait for ever for room that there never is."""
    found = budgets_of(CollectorConfig(workers=workers, max_body_mib=64), machine(GIB // 4))
    assert found.spans >= 64 * MIB
    assert found.spans_per_tenant >= 64 * MIB


def test_settings_go_before_the_machine() -> None:
    """Each limit that nightschool.toml names is taken; the others are computed beside it, and never below it."""
    settings = CollectorConfig(max_in_flight_mib=300, max_in_flight_per_tenant_mib=70, max_in_flight_outcomes_mib=9)
    found = budgets_of(settings, machine(GIB))
    assert (found.spans, found.spans_per_tenant, found.outcomes) == (300 * MIB, 70 * MIB, 9 * MIB)
    found = budgets_of(CollectorConfig(max_in_flight_per_tenant_mib=500), machine(GIB))
    assert (found.spans, found.spans_per_tenant) == (500 * MIB, 500 * MIB)
