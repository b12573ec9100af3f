"""Which adapter answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nightschool.errors import ConfigError, ReleaseRejected
from nightschool_serving.releases.adapter import Adapter, adapter_name
from nightschool_serving.releases.routing import (
    IsolationError,
    ReleaseUnavailable,
    Route,
    RoutingTable,
    UnknownModel,
    check_isolation,
)

BANK = Adapter("bank", "a" * 64, 1001, Path("/cache/bank"), "1")
TELECOM = Adapter("telecom", "b" * 64, 1002, Path("/cache/telecom"), "2")


@pytest.fixture
def table() -> RoutingTable:
    table = RoutingTable(["bank", "telecom"])
    table.replace(Route("bank", epoch=1, stable=BANK))
    table.replace(Route("telecom"))
    return table


def test_the_tenants_alias_is_its_own_release(table: RoutingTable) -> None:
    """`nightschool` means the release of the caller's tenant, and the base model where there is none."""
    bank, telecom = table.resolve("bank", "nightschool"), table.resolve("telecom", "nightschool")
    assert (bank.model, bank.release) == (f"t-bank.{'a' * 16}", "a" * 64)
    assert (telecom.model, telecom.release) == ("base", "base")


def test_base_is_always_the_base_model(table: RoutingTable) -> None:
    """`base` never gets an adapter."""
    target = table.resolve("bank", "base")
    assert (target.model, target.adapter, target.release) == ("base", None, "base")


@pytest.mark.parametrize("alias", [BANK.name, TELECOM.name, "t-", "Nightschool", "nightschool ", "", None, "gpt-4o", "bank"])
def test_any_other_model_does_not_exist(table: RoutingTable, alias: str | None) -> None:
    """Adapter names, also the tenant's own, and an absent model are unknown; the message says what is allowed."""
    with pytest.raises(UnknownModel, match="allowed are 'nightschool' and 'base'"):
        table.resolve("bank", alias)


def test_nothing_answers_for_a_tenant_before_its_pointer_was_read() -> None:
    """The base model does not answer instead of a release that is not known yet."""
    table = RoutingTable(["bank"])
    with pytest.raises(ReleaseUnavailable, match="not been read yet"):
        table.resolve("bank", "nightschool")
    assert table.resolve("bank", "base").model == "base"


def test_cache_salts_differ_by_tenant_and_suit_vllm() -> None:
    """Equal for one tenant's requests, different between tenants and servers, hex of at most 128 characters."""
    first, second = RoutingTable(["bank", "telecom"]), RoutingTable(["bank"])
    for table in (first, second):
        table.replace(Route("bank"))
    salts = [first.resolve("bank", "base"), first.resolve("telecom", "base"), second.resolve("bank", "base")]
    assert len({target.cache_salt for target in salts}) == 3
    assert first.resolve("bank", "nightschool").cache_salt == salts[0].cache_salt
    assert all(len(bytes.fromhex(target.cache_salt)) == 32 for target in salts)


def test_a_lease_counts_until_the_request_is_over(table: RoutingTable) -> None:
    """A request counts on the adapter that it started with until it ends, also with an error."""
    target = table.resolve("bank", "nightschool")
    with table.lease(target), pytest.raises(ZeroDivisionError), table.lease(target):
        table.replace(Route("bank", epoch=2))
        assert table.in_flight(BANK) == 2
        raise ZeroDivisionError
    assert table.in_flight(BANK) == 0


def test_isolation_holds_for_what_the_table_resolves(table: RoutingTable) -> None:
    """Key, route and manifest agree: nothing is raised."""
    check_isolation(table.resolve("bank", "nightschool"), tenant="bank", adapter_id=1001)
    check_isolation(table.resolve("bank", "base"), tenant="bank", adapter_id=None)


def test_isolation_refuses_any_disagreement(table: RoutingTable) -> None:
    """Another tenant by key or manifest, another id behind the name, and a name without an id are refused."""
    target = table.resolve("bank", "nightschool")
    wrong = [
        (target, "telecom", 1001),
        (replace(target, adapter=TELECOM), "bank", 1002),
        (target, "bank", 1002),
        (target, "bank", None),
        (table.resolve("bank", "base"), "bank", 1001),
    ]
    for candidate, tenant, adapter_id in wrong:
        with pytest.raises(IsolationError):
            check_isolation(candidate, tenant=tenant, adapter_id=adapter_id)


def test_the_name_inside_vllm_is_tenant_and_digest() -> None:
    """t-<tenant>.<first 16 digits> of the release: never the same for two releases."""
    assert adapter_name("acme", "0123456789abcdef" * 4) == "t-acme.0123456789abcdef"


@pytest.mark.parametrize("tenant", ["..", "a/b", "", "A"])
def test_a_name_inside_vllm_is_made_of_checked_parts(tenant: str) -> None:
    """What is not a tenant's name, or not a digest, never becomes part of an adapter's name."""
    with pytest.raises(ConfigError, match="is not a tenant name"):
        adapter_name(tenant, "a" * 64)
    with pytest.raises(ReleaseRejected, match="64 lowercase hex digits"):
        adapter_name("acme", "../../etc")
