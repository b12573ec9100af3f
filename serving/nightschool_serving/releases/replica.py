"""The replica: makes this server's routes follow the registry's pointers.

It only pulls. Each look compares the pointer with the route; a new release is copied, verified, loaded and tried before
one assignment makes it answer. Whatever goes wrong, the old release keeps answering, and the reason is kept for
`GET /nightschool/v1/releases`. The release that answered before the current one stays in the engine, so that a rollback
needs no loading.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from nightschool.registry.folder import Registry
from nightschool_serving.releases.adapter_cache import AdapterCache
from nightschool_serving.releases.engine import AdapterEngine
from nightschool_serving.releases.follower import COPY_SECONDS, TenantFollower
from nightschool_serving.releases.routing import RoutingTable

READY_WITHIN_SECONDS = COPY_SECONDS
"""After so long the server counts as ready: tenants that are still pending are told so, the others do not wait."""
# Copying and hashing soon use all of the disk; the rest are for mounts that hang.
_NUM_COPYING = 16


class Replica:
    """Follows the registry for all tenants of this server.

    Every tenant has a task of its own, so that a release that takes long to copy, or a folder that hangs, delays no
    other tenant.
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
        copying = asyncio.Semaphore(_NUM_COPYING)
        self._clock, self._started_s = clock, clock()
        self._followers = {
            tenant: TenantFollower(
                tenant, registry=registry, cache=cache, engine=engine, table=table, copying=copying, clock=clock
            )
            for tenant in tenants
        }

    @property
    def ready(self) -> bool:
        """Whether every tenant is decided (served, or unavailable with a reason), or has been given the time for it."""
        is_late = self._clock() - self._started_s >= READY_WITHIN_SECONDS
        return is_late or all(follower.decided for follower in self._followers.values())

    async def reconcile(self) -> None:
        """Look at every pointer once and make the routes follow."""
        async with asyncio.TaskGroup() as tasks:
            for follower in self._followers.values():
                tasks.create_task(follower.reconcile())

    async def watch(self, poll_seconds: float) -> None:
        """Follow every pointer until cancelled, looking at once and then about every `poll_seconds`."""
        async with asyncio.TaskGroup() as tasks:
            for tenant, follower in self._followers.items():
                tasks.create_task(_watch(follower, poll_seconds), name=f"nightschool-{tenant}")

    def describe(self, tenant: str) -> dict[str, Any]:
        """What `GET /nightschool/v1/releases` shows to `tenant`."""
        return self._followers[tenant].describe()


async def _watch(follower: TenantFollower, poll_seconds: float) -> None:
    while True:
        await follower.reconcile()
        # The jitter keeps replicas and tenants from all reading the registry at the same moment.
        await asyncio.sleep(poll_seconds * random.uniform(0.8, 1.2))  # noqa: S311
