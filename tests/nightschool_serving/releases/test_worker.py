"""Calls that may hang, in threads that nobody waits for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from nightschool_serving.releases.worker import Worker


async def test_a_call_gives_its_result_or_its_error() -> None:
    """As if it had been called here."""
    worker = Worker("test")
    assert await worker.run(lambda: threading.current_thread().name, seconds=30) == "test"
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0, seconds=30)


async def test_a_call_that_hangs_is_left_behind_and_keeps_others_out() -> None:
    """Two calls of one worker never run at once; when the first has ended after all, the next is made."""
    worker, ended, calls = Worker("test"), threading.Event(), []

    def hang() -> None:
        calls.append("hang")
        ended.wait()

    with pytest.raises(TimeoutError, match=r"not ended within 0\.05 s"):
        await worker.run(hang, seconds=0.05)
    with pytest.raises(TimeoutError, match="an earlier call"):
        await worker.run(lambda: calls.append("too early"), seconds=0.05)
    ended.set()
    await worker.run(lambda: calls.append("then"), seconds=30)
    assert calls == ["hang", "then"]


async def test_a_hanging_call_does_not_keep_the_process() -> None:
    """Its thread is a daemon: the end of the server does not wait for a mount that is gone."""
    worker, found = Worker("test"), []
    await worker.run(lambda: found.append(threading.current_thread().daemon), seconds=30)
    assert found == [True]


async def test_an_error_that_comes_too_late_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asked has given up; asyncio does not complain of an exception that was never looked at."""
    worker, ended = Worker("test"), threading.Event()

    def fail_late() -> None:
        ended.wait()
        raise OSError("late")

    with pytest.raises(TimeoutError):
        await worker.run(fail_late, seconds=0.05)
    ended.set()
    await worker.run(lambda: None, seconds=30)
    await asyncio.sleep(0)
    assert caplog.records == []
