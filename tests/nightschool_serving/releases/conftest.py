"""A replica on real registry folders with real, tiny adapters; only the engine is a fake."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nightschool.errors import ReleaseRejected
from nightschool.registry.folder import Registry
from nightschool.registry.release import BaseModel
from nightschool_serving.releases.adapter import Adapter
from nightschool_serving.releases.adapter_cache import AdapterCache
from nightschool_serving.releases.plan import RETIRE_AFTER_SECONDS
from nightschool_serving.releases.replica import Replica
from nightschool_serving.releases.routing import ReleaseUnavailable, Route, RoutingTable


class FakeEngine:
    """An engine that remembers what it holds and refuses what it is told to."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.loads = 0
        self.refuse: str | None = None
        self.error: Exception | None = None
        """Raised by every load and unload."""
        self.stuck: dict[str, asyncio.Event] = {}
        """Loads of these tenants wait for the event."""

    async def load(self, adapter: Adapter) -> None:
        self.loads += 1
        if adapter.tenant in self.stuck:
            await self.stuck[adapter.tenant].wait()
        if self.refuse:
            raise ReleaseRejected(self.refuse)
        if self.error:
            raise self.error
        self.loaded.append(adapter.release)

    async def unload(self, adapter: Adapter) -> None:
        if self.error:
            raise self.error
        self.loaded.remove(adapter.release)


class ObservedTable(RoutingTable):
    """A routing table that tells tests when a route was replaced."""

    def __init__(self, tenants: Iterable[str]) -> None:
        super().__init__(tenants)
        self.replaced: asyncio.Queue[Route] = asyncio.Queue()

    def replace(self, route: Route) -> None:
        super().replace(route)
        self.replaced.put_nowait(route)


@dataclass
class Setup:
    """A replica and everything around it."""

    registry: Registry
    engine: FakeEngine
    table: ObservedTable
    replica: Replica
    cache: Path
    now: list[float]
    base_model: BaseModel

    def restarted(self) -> Setup:
        """A new server on the same registry and the same local copies."""
        return make_setup(self.cache, self.registry, self.base_model)

    def release(self, tenant: str = "bank") -> str:
        return self.table.resolve(tenant, "nightschool").release

    def answering(self, tenant: str) -> str | None:
        """None while nothing can answer."""
        try:
            return self.release(tenant)
        except ReleaseUnavailable:
            return None

    def point(self, tenant: str, digest: str | None) -> None:
        self.registry.move_pointer(tenant, self.registry.pointer(tenant), stable=digest)

    async def until_released(self, **releases: str) -> None:
        """Wait until these releases answer their tenants."""
        async with asyncio.timeout(30):
            while any(self.answering(tenant) != release for tenant, release in releases.items()):
                await self.table.replaced.get()

    async def settle(self) -> None:
        """Let so much time pass that what is idle leaves the engine."""
        await self.replica.reconcile()
        self.now[0] += RETIRE_AFTER_SECONDS
        await self.replica.reconcile()


@pytest.fixture
def setup(tmp_path: Path, registry: Registry, tiny_base_model: BaseModel) -> Setup:
    registry.create()
    return make_setup(tmp_path / "cache", registry, tiny_base_model)


def make_setup(cache: Path, registry: Registry, base_model: BaseModel) -> Setup:
    engine, table, now = FakeEngine(), ObservedTable(["bank", "telecom"]), [0.0]
    releases = AdapterCache(cache, registry, base_model=base_model, dtype="float32", max_rank=16)
    replica = Replica(["bank", "telecom"], registry=registry, cache=releases, engine=engine, table=table, clock=lambda: now[0])
    return Setup(registry, engine, table, replica, cache, now, base_model)
