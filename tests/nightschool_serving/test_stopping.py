"""Ctrl-C on a real `nightschool serve`."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.mark.parametrize("when", ["while it starts", "while it serves"])
def test_ctrl_c_ends_without_a_traceback(make_server: Callable[..., Any], when: str) -> None:
    """A person who stops the server sees that it stopped, and no stack of vLLM."""
    server = make_server()
    if when == "while it serves":
        server.wait_until(server.is_up, "start of the server", seconds=240.0)
    else:
        server.wait_until(lambda: "vLLM" in server.log.read_text(), "vLLM being imported", seconds=120.0)
    presses = 0
    # asyncio turns the first SIGINT of a start into a cancellation, which vLLM loses at some moments; a person presses again.
    while server.process.poll() is None and presses < 4:
        server.process.send_signal(signal.SIGINT)
        presses += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(60)
    ended = server.process.poll()
    assert ended == 0 if when == "while it serves" else ended == 130 or (presses > 1 and ended == 0)
    assert "Traceback" not in server.log.read_text()
