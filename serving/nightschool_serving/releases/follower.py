"""Follows the pointer of one tenant: what goes wrong here concerns this tenant and nobody else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from nightschool.errors import RegistryError, ReleaseRejected
from nightschool.registry.folder import Pointer, Registry
from nightschool_serving.releases.adapter_cache import AdapterCache
from nightschool_serving.releases.description import description
from nightschool_serving.releases.engine import AdapterEngine
from nightschool_serving.releases.plan import (
    Load,
    Switch,
    TenantState,
    Unload,
    delayed,
    idle_since,
    plan,
    plan_unloads,
)
from nightschool_serving.releases.routing import Route, RoutingTable
from nightschool_serving.releases.trouble import trouble_of
from nightschool_serving.releases.worker import Worker

POINTER_SECONDS = 10.0
"""For reading one small file; a mount that takes longer hangs."""
COPY_SECONDS = 120.0
"""For copying and checking a release: 4 GiB at 35 MB/s. A copy that takes longer goes on, and is found later."""
_MAX_PARENTS = 8  # nights back; whoever needs more should move the pointer
_TRIES_BEFORE_PARENT = 3  # failed attempts (14 s) before a parent answers in place of a release that may still load

_logger = logging.getLogger(__name__)


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
        copying: asyncio.Semaphore,
        clock: Callable[[], float],
    ) -> None:
        """`copying` bounds how many tenants copy releases at the same time; `clock` gives seconds."""
        self._tenant, self._registry, self._cache, self._engine, self._table = tenant, registry, cache, engine, table
        self._copying, self._clock = copying, clock
        self._files = Worker(f"nightschool-{tenant}")
        self._state = TenantState()

    @property
    def decided(self) -> bool:
        """Whether it is known since the start what answers the tenant."""
        return self._state.decided

    async def reconcile(self) -> None:
        """Look at the pointer once, make the route follow it, and unload what has been idle for long enough.

        It never raises: the tenant's route stays as it was, and what happened is logged and shown.
        """
        try:
            pointer = await self._files.run(self._read_pointer, seconds=POINTER_SECONDS)
            self._state.unreachable = None
            await self._follow(pointer)
        except Exception as error:
            self._keep_serving(error)
        self._state.decided = True
        try:
            await self._retire()
        except Exception:
            _logger.exception("tenant %s: an adapter could not leave the engine, it is tried again", self._tenant)

    def describe(self) -> dict[str, Any]:
        """What `GET /nightschool/v1/releases` shows to the tenant."""
        return description(self._state, self._table.route(self._tenant))

    # --- following the pointer ----------------------------------------------------------------------------------------
    def _read_pointer(self) -> Pointer:
        self._registry.check_present()
        pointer, followed = self._registry.pointer(self._tenant), self._state.followed
        vanished = pointer.epoch == 0 and followed is not None and followed.epoch > 0
        if vanished and not (self._registry.root / self._tenant).is_dir():
            # A mount that went away looks like a tenant that never had a release.
            raise RegistryError(f"the folder of tenant {self._tenant!r} has vanished from {self._registry.root}")
        return pointer

    async def _follow(self, pointer: Pointer) -> None:
        """Make `pointer` answer. A refused release is remembered; on any other error it is tried again later."""
        try:
            for step in plan(self._state, pointer, self._clock()):
                match step:
                    case Load(release):
                        await self._load(release)
                    case Switch(release, epoch):
                        self._switch(release, epoch)
                        self._state.followed, self._state.rejected = pointer, None
                        self._state.delay = self._state.fallback_for = None
        except ReleaseRejected as error:
            self._reject(pointer, error)
            await self._fall_back(pointer)
        except Exception as error:
            self._delay(pointer, error)
            if self._state.delay is not None and self._state.delay.attempts >= _TRIES_BEFORE_PARENT:
                await self._fall_back(pointer)

    async def _load(self, release: str) -> None:
        # Hashing the local copy also brings it into the page cache: the engine answers nobody while it reads the file.
        async with self._copying:
            adapter = await self._files.run(lambda: self._cache.fetch(self._tenant, release), seconds=COPY_SECONDS)
        try:
            await self._engine.load(adapter)
        except ReleaseRejected:
            await self._files.run(lambda: self._cache.drop(adapter), seconds=COPY_SECONDS)
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

    async def _fall_back(self, pointer: Pointer) -> None:
        """Where nothing answers, let the nearest parent answer that can be loaded; never the base model by itself."""
        release = pointer.stable
        for _ in range(_MAX_PARENTS):
            if release is None or self._table.route(self._tenant).unavailable is None:
                return
            try:
                release = await self._files.run(partial(self._parent_of, release), seconds=POINTER_SECONDS)
                if release is None:
                    return
                if release not in self._state.resident:
                    await self._load(release)
            except ReleaseRejected as error:
                _logger.error("tenant %s: its parent cannot answer in its place: %s", self._tenant, error)  # noqa: TRY400
            except Exception as error:
                # The chain is tried again with the release itself.
                self._state.followed = None
                self._delay(pointer, error)
                return
            else:
                self._switch(release, pointer.epoch)
                self._state.fallback_for = pointer.stable
                _logger.warning(
                    "tenant %s: parent %s answers in place of %s", self._tenant, release[:12], (pointer.stable or "")[:12]
                )
                return

    def _parent_of(self, release: str) -> str | None:
        return self._registry.manifest(self._tenant, release).parent

    # --- when it cannot be followed -----------------------------------------------------------------------------------
    def _reject(self, pointer: Pointer, error: ReleaseRejected) -> None:
        """Remember a refused release; it is not tried again until the pointer changes."""
        release = pointer.stable or ""
        told = self._tell(error, f"release {release[:12]} is rejected")
        self._state.followed, self._state.delay = pointer, None
        self._state.rejected = {"release": release, "reason": told}
        self._state.rejections += 1
        self._explain(told)

    def _delay(self, pointer: Pointer, error: Exception) -> None:
        told = self._tell(error, f"release {(pointer.stable or '')[:12]} cannot be loaded yet, it is tried again")
        self._state.delay = delayed(self._state, pointer, self._clock(), told)
        self._explain(told)

    def _keep_serving(self, error: Exception) -> None:
        trouble = trouble_of(self._tenant, error, hidden=self._hidden())
        if self._state.unreachable != trouble.told:
            _logger.warning(
                "tenant %s: the registry cannot be read, what is loaded keeps answering: %s",
                self._tenant,
                trouble.full,
                exc_info=None if isinstance(error, OSError) else error,
            )
        self._state.unreachable = trouble.told
        self._explain(trouble.told)

    def _tell(self, error: Exception, what: str) -> str:
        """Log what happened in full, with the id that the tenant is told too."""
        trouble = trouble_of(self._tenant, error, hidden=self._hidden())
        unexpected = None if isinstance(error, OSError) else error
        _logger.error("tenant %s: %s: %s", self._tenant, what, trouble.full, exc_info=unexpected)
        return trouble.told

    def _hidden(self) -> tuple[Any, ...]:
        return self._registry.root, self._cache.root

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
        # Nothing routes to it, and only this task could change that. It is forgotten when the engine has let it go, so
        # that a failure is tried again and no weights stay in the engine that nobody knows of.
        adapter = self._state.resident[step.release]
        await self._engine.unload(adapter)
        del self._state.resident[step.release]
        self._state.idle_since.pop(step.release, None)
        self._table.forget(adapter)
        await self._files.run(lambda: self._cache.drop(adapter), seconds=COPY_SECONDS)
        _logger.info("tenant %s: %s left the engine", self._tenant, adapter.name)
