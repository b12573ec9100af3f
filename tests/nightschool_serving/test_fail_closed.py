"""A server whose plugins are missing: vLLM would start and answer; ours must not."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nightschool.config.reader import load_config
from nightschool.machine import read_machine
from nightschool_serving.launch import server_arguments, server_environment

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
Start = Callable[..., Any]


def start(config_path: Path, plugins: str, log: Path) -> subprocess.Popen[bytes]:
    """The command that `nightschool serve` becomes, with other plugins."""
    config, machine = load_config(config_path), read_machine()
    environment = {**os.environ, **server_environment(config_path, config, os.environ, machine), "VLLM_PLUGINS": plugins}
    become = "import sys; from nightschool.process import become_python; become_python(sys.argv[1:])"
    command = [sys.executable, "-c", become, "-m", "nightschool_serving.server", *server_arguments(config, [], machine)]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def test_a_cpu_server_without_the_grouped_operations_refuses_to_start(make_server: Start) -> None:
    """vLLM's own CPU operations leak adapters between tenants: the process ends and says what to do."""
    server = make_server(lambda config, log: start(config, "nightschool", log))
    server.process.wait(300)
    assert server.process.returncode != 0
    assert "leaks adapters into other requests" in server.log.read_text()


def test_a_server_without_the_endpoint_plugin_answers_nothing(make_server: Start) -> None:
    """vLLM starts with its stock routes; the guard, loaded as middleware, lets no request through to them."""
    server = make_server(lambda config, log: start(config, "nightschool_cpu_lora", log))

    def listening() -> bool:
        try:
            server.call("GET", "/health")
        except urllib.error.URLError:
            return False
        return True

    server.wait_until(listening, "start of the server", seconds=300.0)
    assert server.call("GET", "/health").status == 503
    assert server.chat("bank", "base", "Hello").status == 503
    assert server.call("GET", "/v1/models", tenant="bank").status == 503
    assert server.call("POST", "/v1/responses", {}, tenant="bank").status == 404
