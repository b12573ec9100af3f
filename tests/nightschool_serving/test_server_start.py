"""The process that `nightschool serve` becomes, up to the point where vLLM would start its engine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from nightschool.config.settings import Config
from nightschool.machine import read_machine
from nightschool_serving import server
from nightschool_serving.launch import server_arguments

pytestmark = pytest.mark.vllm


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What vLLM's server was started with; an exception in the list is raised by it."""
    from vllm.entrypoints.launchers.api_server import entry

    calls: list[Any] = []

    async def run_server(arguments: Any, **options: Any) -> None:
        if calls:
            raise calls[0]
        calls.append((arguments, options))

    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    monkeypatch.setattr(entry, "run_server", run_server)
    monkeypatch.setattr(sys, "argv", ["server", *server_arguments(Config(), [], read_machine())])
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


def test_vllm_is_started_with_limits_on_connections(started: list[Any]) -> None:
    """Its own arguments, our protocol for connections, and an end of those that stay open."""
    server.main()
    ((arguments, options),) = started
    assert (arguments.served_model_name, arguments.enable_lora) == (["base"], True)
    assert options["http"].limits.head_seconds > 0
    assert options["timeout_graceful_shutdown"] > 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_stop_while_starting_is_one_line(started: list[Any], capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback of what was being loaded."""
    monkeypatch.setattr(os, "_exit", sys.exit)
    started.append(KeyboardInterrupt())
    with pytest.raises(SystemExit) as ended:
        server.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "nightschool serve: stopped while starting"
