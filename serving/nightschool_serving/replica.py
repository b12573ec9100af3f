"""The replica: makes this server's routes follow the registry's pointers.

It only pulls. Each look compares the pointer with the route; a new release is copied, verified, loaded and tried before
one assignment makes it answer. What follows one tenant is `TenantFollower`; every tenant has a task of its own, so that
a release that takes long to copy, or a folder that cannot be read, delays no other tenant.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nightschool.registry.folder import Registry
from nightschool_serving.adapter_cache import AdapterCache
from nightschool_serving.engine import AdapterEngine
from nightschool_serving.follower import TenantFollower
from nightschool_serving.routing import RoutingTable

# Copying and hashing soon use all of the disk. With threads of our own, a registry that hangs blocks only these, never
# the event loop's threads, which vLLM uses too.
_NUM_THREADS = 4

_logger = logging.getLogger(__name__)


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


async def _watch(tenant: str, follower: TenantFollower, poll_seconds: float) -> None:
    while True:
        # The jitter keeps replicas and tenants from all reading the registry at the same moment.
        await asyncio.sleep(poll_seconds * random.uniform(0.8, 1.2))  # noqa: S311
        try:
            await follower.reconcile()
        except Exception:
            # A defect in following the registry must not take down answers that work.
            _logger.exception("tenant %s: following the registry failed; the loaded release keeps answering", tenant)
