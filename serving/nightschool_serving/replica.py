"""The replica: makes this server's routes follow the registry's pointers.

Pull only. Each look compares the pointer with the route; a new release is copied, verified, loaded and tried before one
assignment makes it answer. Whatever goes wrong on the way, the old release keeps answering and the reason is kept for
`GET /nightschool/v1/releases`. The version before the current one stays in the engine, so that a rollback is instant.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from nightschool.errors import RegistryError, ReleaseRejected
from nightschool.registry.folder import Pointer, Registry
from nightschool.semconv import BASE_RELEASE
from nightschool_serving.adapter import Adapter
from nightschool_serving.adapter_cache import AdapterCache
from nightschool_serving.engine import AdapterEngine
from nightschool_serving.routing import Route, RoutingTable

RETIRE_AFTER_SECONDS = 30.0
"""How long an adapter that nothing routes to must have been idle before it leaves the engine."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class TenantState:
    """What the replica knows of one tenant."""

    pointer_read: bool = False
    followed: Pointer | None = None
    """The pointer that was acted on last, with or without success; None before the first."""
    previous: Adapter | None = None
    resident: dict[str, Adapter] = field(default_factory=dict)
    """Adapters in the engine, by digest."""
    idle_since: dict[str, float] = field(default_factory=dict)
    rejected: dict[str, str] | None = None
    """The last release that was refused, and why."""
    rejections: int = 0
    unreachable: str | None = None
    """Why the registry cannot be read; None while it can."""


class Replica:
    """Follows the registry for all tenants of this server."""

    def __init__(
        self,
        tenants: Iterable[str],
        *,
        registry: Registry,
        cache: AdapterCache,
        engine: AdapterEngine,
        table: RoutingTable,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._cache, self._engine, self._table = registry, cache, engine, table
        self._clock = clock
        self._tenants = {tenant: TenantState() for tenant in tenants}

    @property
    def ready(self) -> bool:
        """Whether every tenant's pointer has been read once; a tenant whose release cannot be loaded refuses on its own."""
        return all(state.pointer_read for state in self._tenants.values())

    async def watch(self, poll_seconds: float) -> None:
        """Reconcile for ever, with jitter so that replicas do not look in step."""
        while True:
            await asyncio.sleep(poll_seconds * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                await self.reconcile()
            except Exception:
                # A defect in following the registry must not take down answers that work.
                _logger.exception("following the registry failed; the loaded releases keep answering")

    async def reconcile(self) -> None:
        """Look at every pointer once and make the routes follow."""
        for tenant, state in self._tenants.items():
            try:
                pointer = await asyncio.to_thread(self._read_pointer, tenant, state)
                state.pointer_read = True
                if pointer != state.followed:
                    await self._follow(tenant, state, pointer)
                state.unreachable = None
            except ReleaseRejected as error:
                self._reject(tenant, state, pointer, error)
                state.unreachable = None
            except (RegistryError, OSError) as error:
                self._keep_serving(tenant, state, error)
            await self._retire(tenant, state)

    def describe(self, tenant: str) -> dict[str, Any]:
        """What `GET /nightschool/v1/releases` shows to `tenant`."""
        state, route = self._tenants[tenant], self._table.route(tenant)
        return {
            "tenant": tenant,
            "epoch": route.epoch,
            "release": route.stable.digest if route.stable else BASE_RELEASE,
            "state": "unavailable" if route.unavailable else "serving",
            "reason": route.unavailable,
            "previous": state.previous.digest if state.previous else None,
            "rejected": state.rejected,
            "rejections": state.rejections,
            "registry": state.unreachable or "reachable",
        }

    def _read_pointer(self, tenant: str, state: TenantState) -> Pointer:
        pointer = self._registry.pointer(tenant)
        vanished = pointer.epoch == 0 and state.followed is not None and state.followed.epoch > 0
        if vanished and not (self._registry.root / tenant).is_dir():
            # A mount that went away looks like a tenant that never had a release.
            raise RegistryError(f"the folder of tenant {tenant!r} has vanished from {self._registry.root}")
        return pointer

    async def _follow(self, tenant: str, state: TenantState, pointer: Pointer) -> None:
        """Make `pointer` answer; on an error the route and the followed pointer are as before."""
        adapter = None
        if pointer.stable is not None:
            adapter = state.resident.get(pointer.stable) or await self._load(tenant, state, pointer.stable)
        before = self._table.route(tenant).stable
        self._table.replace(Route(tenant, epoch=pointer.epoch, stable=adapter))
        if before != adapter:
            state.previous = before
        state.followed, state.rejected = pointer, None
        _logger.info("tenant %s: epoch %d, %s answers", tenant, pointer.epoch, adapter.name if adapter else "the base model")

    async def _load(self, tenant: str, state: TenantState, digest: str) -> Adapter:
        # Hashing the local copy also warms the page cache: the engine blocks every stream while it reads the file.
        adapter = await asyncio.to_thread(self._cache.fetch, tenant, digest)
        try:
            await self._engine.load(adapter)
        except ReleaseRejected:
            await asyncio.to_thread(self._cache.drop, adapter)
            raise
        state.resident[digest] = adapter
        return adapter

    def _reject(self, tenant: str, state: TenantState, pointer: Pointer, error: ReleaseRejected) -> None:
        """Remember a refused release; it is not tried again until the pointer changes."""
        state.followed = pointer
        state.rejected = {"release": pointer.stable or "", "reason": str(error)}
        state.rejections += 1
        self._explain(tenant, str(error))
        _logger.error("tenant %s: release %s is rejected: %s", tenant, (pointer.stable or "")[:12], error)

    def _keep_serving(self, tenant: str, state: TenantState, error: Exception) -> None:
        if state.unreachable is None:
            _logger.warning("tenant %s: the registry cannot be read, the loaded release keeps answering: %s", tenant, error)
        state.unreachable = str(error)
        self._explain(tenant, str(error))

    def _explain(self, tenant: str, reason: str) -> None:
        """Give the reason to clients of a tenant for whom nothing answers; a route that answers stays as it is."""
        route = self._table.route(tenant)
        if route.unavailable is not None:
            self._table.replace(replace(route, unavailable=reason))

    async def _retire(self, tenant: str, state: TenantState) -> None:
        """Unload adapters that nothing routes to and nothing has used for a while."""
        wanted = {adapter.digest for adapter in (self._table.route(tenant).stable, state.previous) if adapter}
        now = self._clock()
        for digest, adapter in list(state.resident.items()):
            if digest in wanted or self._table.in_flight(adapter):
                state.idle_since.pop(digest, None)
            elif now - state.idle_since.setdefault(digest, now) >= RETIRE_AFTER_SECONDS:
                # First out of our books: no new request can reach an adapter that is on its way out.
                del state.resident[digest], state.idle_since[digest]
                self._table.forget(adapter)
                await self._engine.unload(adapter)
                await asyncio.to_thread(self._cache.drop, adapter)
                _logger.info("tenant %s: %s left the engine", tenant, adapter.name)
