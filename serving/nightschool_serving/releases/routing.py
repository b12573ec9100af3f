"""Which adapter answers: tenant and alias in, the engine's immutable name out. Memory only, no I/O.

A client never names an adapter. It says "nightschool" (its tenant's release) or "base"; what that means now is one
`Route` per tenant, which the replica replaces as a whole.
"""

from __future__ import annotations

import hmac
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nightschool.errors import NightschoolError
from nightschool.semconv import BASE_RELEASE
from nightschool_serving.releases.adapter import Adapter

TENANT_ALIAS = "nightschool"
BASE_ALIAS = "base"
ALIASES = (TENANT_ALIAS, BASE_ALIAS)
NOT_READ_YET = "the registry has not been read yet"


class UnknownModel(NightschoolError, LookupError):  # noqa: N818 - named by what happened
    """The client asked for a model that is not one of its aliases."""


class ReleaseUnavailable(NightschoolError, RuntimeError):  # noqa: N818 - named by what happened
    """The tenant's release cannot be loaded and no earlier one is in memory; the base model does not answer instead."""


class IsolationError(NightschoolError, RuntimeError):
    """A request was about to be answered by another tenant's adapter."""


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a tenant's requests. A canary and its share of traffic belong here, beside `stable`."""

    tenant: str
    epoch: int = 0
    """Epoch of the pointer that this route follows."""
    stable: Adapter | None = None
    """None is the base model."""
    unavailable: str | None = None
    """Why nothing can answer requests for `nightschool`; None when something can."""

    def pick(self) -> Adapter | None:
        """The adapter for one request; `ReleaseUnavailable` if nothing can answer."""
        if self.unavailable is not None:
            raise ReleaseUnavailable(
                f"the release of tenant {self.tenant!r} cannot be served: {self.unavailable}; model {BASE_ALIAS!r} still answers"
            )
        return self.stable


@dataclass(frozen=True, slots=True)
class Target:
    """Where one request goes."""

    tenant: str
    model: str
    """The name inside the engine."""
    adapter: Adapter | None
    """None is the base model."""
    cache_salt: str
    """Separates the tenant's entries in vLLM's prefix cache from those of others."""

    @property
    def release(self) -> str:
        """Digest of the release, or "base"."""
        return self.adapter.release if self.adapter else BASE_RELEASE


class RoutingTable:
    """The routes of all tenants, and how many requests each adapter is answering now."""

    def __init__(self, tenants: Iterable[str], *, salt_key: bytes | None = None) -> None:
        self._routes = {tenant: Route(tenant, unavailable=NOT_READ_YET) for tenant in tenants}
        # Without a salt all requests to the base model share vLLM's prefix cache, and a tenant could find out another's
        # prompts by measuring which answers start sooner.
        key = salt_key if salt_key is not None else secrets.token_bytes(32)
        self._salts = {tenant: hmac.new(key, tenant.encode(), "sha256").hexdigest() for tenant in self._routes}
        self._in_flight: Counter[str] = Counter()

    def route(self, tenant: str) -> Route:
        """What answers the tenant now."""
        return self._routes[tenant]

    def replace(self, route: Route) -> None:
        """Make `route` the tenant's; requests in flight keep the adapter they started with."""
        self._routes[route.tenant] = route

    def resolve(self, tenant: str, alias: str | None) -> Target:
        """Where a request of `tenant` for `alias` goes; `UnknownModel` or `ReleaseUnavailable` if nowhere."""
        if alias not in ALIASES:
            raise UnknownModel(f"model {alias!r} does not exist; allowed are {' and '.join(map(repr, ALIASES))}")
        adapter = self._routes[tenant].pick() if alias == TENANT_ALIAS else None
        return Target(tenant, adapter.name if adapter else BASE_ALIAS, adapter, self._salts[tenant])

    @contextmanager
    def lease(self, target: Target) -> Iterator[None]:
        """Count a request on the target's adapter until it is over; an adapter with requests stays in the engine."""
        self._in_flight[target.model] += 1
        try:
            yield
        finally:
            self._in_flight[target.model] -= 1

    def in_flight(self, adapter: Adapter) -> int:
        """How many requests the adapter is answering."""
        return self._in_flight[adapter.name]

    def forget(self, adapter: Adapter) -> None:
        """Drop the count of an adapter that left the engine."""
        self._in_flight.pop(adapter.name, None)


def check_isolation(target: Target, *, tenant: str, adapter_id: int | None) -> None:
    """The last check before the engine: key, target and manifest are of one tenant, the id is the manifest's.

    `tenant` is that of the key, `adapter_id` what vLLM's handlers will use for the target's name.
    """
    adapter = target.adapter
    owner = adapter.tenant if adapter else tenant
    expected_id = adapter.id if adapter else None
    if not tenant == target.tenant == owner or adapter_id != expected_id:
        raise IsolationError(
            f"request of {tenant!r} was routed to {target.model!r} of {target.tenant!r}, adapter of {owner!r} "
            f"with id {adapter_id} (expected {expected_id}); nothing was generated"
        )
