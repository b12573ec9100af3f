"""The end of a server, as vLLM brings it about: `engine_client.shutdown` in a thread, then once more in the event loop."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from nightschool_serving.draining import drain_before_shutdown


def make() -> tuple[Any, Any, list[tuple[float, int]]]:
    stopped: list[tuple[float, int]] = []
    serving: Any = SimpleNamespace(draining=False, in_progress=0)
    client = SimpleNamespace(shutdown=lambda timeout: stopped.append((timeout, serving.in_progress)))
    drain_before_shutdown(client, serving)
    return client, serving, stopped


async def test_the_engine_stops_after_the_last_answer() -> None:
    """New requests are refused at once; the engine is told to stop when those in progress are answered."""
    client, serving, stopped = make()
    serving.in_progress = 2
    ending = asyncio.get_running_loop().run_in_executor(None, lambda: client.shutdown(timeout=60))
    while not serving.draining:  # noqa: ASYNC110 - what changes is in a thread
        await asyncio.sleep(0.01)
    assert stopped == []
    serving.in_progress = 0
    await ending
    assert [in_progress for _, in_progress in stopped] == [0]


async def test_an_answer_that_takes_too_long_does_not_keep_the_server() -> None:
    """After the time that vLLM gives, the engine stops with requests in progress."""
    client, serving, stopped = make()
    serving.in_progress = 1
    await asyncio.to_thread(client.shutdown, timeout=0.1)
    assert stopped == [(0.0, 1)]


async def test_the_event_loop_never_waits() -> None:
    """vLLM's last call comes from the loop that writes the answers."""
    client, serving, stopped = make()
    serving.in_progress = 1
    client.shutdown(timeout=3600)
    assert len(stopped) == 1
