"""Runs what may hang (a read from a mount that is gone) without holding up anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """One call at a time, each in a daemon thread of its own.

    A thread that hangs in the kernel cannot be ended. It is left behind: it keeps only this worker busy, and neither
    a pool of threads nor the end of the process waits for it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[[], T], *, seconds: float) -> T:
        """The result of `work`; `TimeoutError` when it, or an earlier call that still hangs, takes longer."""
        if self._running is not None and not await _done(self._running, seconds):
            raise TimeoutError(f"an earlier call has not ended, and not within {seconds:g} s more")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        # Whoever waited may have given up; without this asyncio complains of an error that nobody looked at.
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._running = future

        def call() -> None:
            try:
                finish, value = future.set_result, work()
            except Exception as error:
                finish, value = future.set_exception, error  # type: ignore[assignment]
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(finish, value)

        Thread(target=call, name=self._name, daemon=True).start()
        if not await _done(future, seconds):
            raise TimeoutError(f"it has not ended within {seconds:g} s")
        return future.result()


async def _done(future: asyncio.Future[Any], seconds: float) -> bool:
    done, _ = await asyncio.wait({future}, timeout=seconds)
    return bool(done)
