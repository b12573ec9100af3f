"""Ctrl-C on a real `nightschool serve`."""

from __future__ import annotations

import signal
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
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == (0 if when == "while it serves" else 130)
    assert "Traceback" not in server.log.read_text()
