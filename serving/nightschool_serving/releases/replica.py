"""The replica: makes this server's routes follow the registry's pointers.

It only pulls. Each look compares the pointer with the route; a new release is copied, verified, loaded and tried before
one assignment makes it answer. Whatever goes wrong, the old release keeps answering, and the reason is kept for
`GET /nightschool/v1/releases`. The release that answered before the current one stays in the engine, so that a rollback
needs no loading.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from nightschool.errors import RegistryError, ReleaseRejected
from nightschool.registry.folder import Pointer, Registry
from nightschool.semconv import BASE_RELEASE
from nightschool_serving.releases.adapter_cache import AdapterCache
from nightschool_serving.releases.engine import AdapterEngine
from nightschool_serving.releases.plan import Load, Switch, TenantState, Unload, idle_since, plan, plan_unloads
from nightschool_serving.releases.routing import Route, RoutingTable

# Copying and hashing soon use all of the disk. With threads of our own, a registry that hangs blocks only these, never
# the event loop's threads, which vLLM uses too.
_NUM_THREADS = 4

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class Replica:
    """Follows the registry for all tenants of this server.

    Every tenant has a task of its own, so that a release that takes long to copy, or a folder that is slow to read,
    delays no other tenant.
    """

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
        threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="nightschool-replica")
        self._followers = {
            tenant: TenantFollower(
                tenant, registry=registry, cache=cache, engine=engine, table=table, threads=threads, clock=clock
            )
            for tenant in tenants
        }

    @property
    def ready(self) -> bool:
        """Whether every tenant's pointer was read once; a release that cannot be loaded concerns its tenant only."""
        return all(follower.pointer_read for follower in self._followers.values())

    async def reconcile(self) -> None:
        """Look at every pointer once and make the routes follow."""
        async with asyncio.TaskGroup() as tasks:
            for follower in self._followers.values():
                tasks.create_task(follower.reconcile())

    async def watch(self, poll_seconds: float) -> None:
        """Follow every pointer until cancelled, looking about every `poll_seconds`."""
        async with asyncio.TaskGroup() as tasks:
            for tenant, follower in self._followers.items():
                tasks.create_task(_watch(tenant, follower, poll_seconds), name=f"nightschool-{tenant}")

    def describe(self, tenant: str) -> dict[str, Any]:
        """What `GET /nightschool/v1/releases` shows to `tenant`."""
        return self._followers[tenant].describe()


class TenantFollower:
    """Follows the pointer of one tenant. Only one task may call `reconcile` at a time."""

    def __init__(
        self,
        tenant: str,
        *,
        registry: Registry,
        cache: AdapterCache,
        engine: AdapterEngine,
        table: RoutingTable,
        threads: Executor,
        clock: Callable[[], float],
    ) -> None:
        """`threads` run what reads and copies files; `clock` gives seconds."""
        self._tenant, self._registry, self._cache, self._engine, self._table = tenant, registry, cache, engine, table
        self._threads, self._clock = threads, clock
        self._state = TenantState()

    @property
    def pointer_read(self) -> bool:
        """Whether the tenant's pointer has been read once."""
        return self._state.pointer_read

    async def reconcile(self) -> None:
        """Look at the pointer once, make the route follow it, and unload what has been idle for long enough."""
        try:
            pointer = await self._in_thread(self._read_pointer)
            self._state.pointer_read = True
            await self._follow(pointer)
            self._state.unreachable = None
        except (RegistryError, OSError) as error:
            self._keep_serving(error)
        await self._retire()

    def describe(self) -> dict[str, Any]:
        """What `GET /nightschool/v1/releases` shows to the tenant."""
        state, route = self._state, self._table.route(self._tenant)
        return {
            "tenant": self._tenant,
            "epoch": route.epoch,
            "release": route.stable.release if route.stable else BASE_RELEASE,
            "state": "unavailable" if route.unavailable else "serving",
            "reason": route.unavailable,
            "previous": state.previous.release if state.previous else None,
            "rejected": state.rejected,
            "rejections": state.rejections,
            "registry": state.unreachable or "reachable",
        }

    # --- following the pointer ----------------------------------------------------------------------------------------
    def _read_pointer(self) -> Pointer:
        pointer, followed = self._registry.pointer(self._tenant), self._state.followed
        vanished = pointer.epoch == 0 and followed is not None and followed.epoch > 0
        if vanished and not (self._registry.root / self._tenant).is_dir():
            # A mount that went away looks like a tenant that never had a release.
            raise RegistryError(f"the folder of tenant {self._tenant!r} has vanished from {self._registry.root}")
        return pointer

    async def _follow(self, pointer: Pointer) -> None:
        """Make `pointer` answer. A refused release is remembered; on any other error the state is as before."""
        try:
            for step in plan(self._state, pointer):
                match step:
                    case Load(release):
                        await self._load(release)
                    case Switch(release, epoch):
                        self._switch(release, epoch)
                        self._state.followed, self._state.rejected = pointer, None
        except ReleaseRejected as error:
            self._reject(pointer, error)

    async def _load(self, release: str) -> None:
        # Hashing the local copy also brings it into the page cache: the engine answers nobody while it reads the file.
        adapter = await self._in_thread(lambda: self._cache.fetch(self._tenant, release))
        try:
            await self._engine.load(adapter)
        except ReleaseRejected:
            await self._in_thread(lambda: self._cache.drop(adapter))
            raise
        self._state.resident[release] = adapter

    def _switch(self, release: str | None, epoch: int) -> None:
        adapter = None if release is None else self._state.resident[release]
        before = self._table.route(self._tenant).stable
        self._table.replace(Route(self._tenant, epoch=epoch, stable=adapter))
        if before != adapter:
            self._state.previous = before
        name = adapter.name if adapter else "the base model"
        _logger.info("tenant %s: epoch %d, %s answers", self._tenant, epoch, name)

    # --- when it cannot be followed -----------------------------------------------------------------------------------
    def _reject(self, pointer: Pointer, error: ReleaseRejected) -> None:
        """Remember a refused release; it is not tried again until the pointer changes."""
        release = pointer.stable or ""
        self._state.followed = pointer
        self._state.rejected = {"release": release, "reason": str(error)}
        self._state.rejections += 1
        self._explain(str(error))
        _logger.error("tenant %s: release %s is rejected: %s", self._tenant, release[:12], error)

    def _keep_serving(self, error: Exception) -> None:
        if self._state.unreachable is None:
            _logger.warning("tenant %s: the registry cannot be read, the loaded release keeps answering: %s", self._tenant, error)
        self._state.unreachable = str(error)
        self._explain(str(error))

    def _explain(self, reason: str) -> None:
        """Give the reason to clients of a tenant that nothing answers for; a route that answers stays as it is."""
        route = self._table.route(self._tenant)
        if route.unavailable is not None:
            self._table.replace(replace(route, unavailable=reason))

    # --- leaving the engine -------------------------------------------------------------------------------------------
    async def _retire(self) -> None:
        """Unload adapters that nothing routes to and that no request has used for a while."""
        state, now_s = self._state, self._clock()
        kept = (self._table.route(self._tenant).stable, state.previous)
        needed = {adapter.release for adapter in kept if adapter}
        needed |= {release for release, adapter in state.resident.items() if self._table.in_flight(adapter)}
        state.idle_since = idle_since(state, needed, now_s)
        for step in plan_unloads(state.idle_since, now_s):
            await self._unload(step)

    async def _unload(self, step: Unload) -> None:
        # It leaves our own state first: then no new request can reach an adapter that is being unloaded.
        adapter = self._state.resident.pop(step.release)
        self._table.forget(adapter)
        await self._engine.unload(adapter)
        await self._in_thread(lambda: self._cache.drop(adapter))
        _logger.info("tenant %s: %s left the engine", self._tenant, adapter.name)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _watch(tenant: str, follower: TenantFollower, poll_seconds: float) -> None:
    while True:
        # The jitter keeps replicas and tenants from all reading the registry at the same moment.
        await asyncio.sleep(poll_seconds * random.uniform(0.8, 1.2))  # noqa: S311
        try:
            await follower.reconcile()
        except Exception:
            # A defect in following the registry must not take down answers that work.
            _logger.exception("tenant %s: following the registry failed; the loaded release keeps answering", tenant)
