"""What `nightschool serve` checks and starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nightschool.config.settings import Config, ServingConfig, TenantConfig
from nightschool.errors import ConfigError
from nightschool_serving.launch import (
    DANGEROUS_VARIABLES,
    check_environment,
    server_environment,
    warnings_about,
)


@pytest.mark.parametrize("name", DANGEROUS_VARIABLES)
def test_a_dangerous_switch_stops_the_start(name: str) -> None:
    """Each would undo the isolation of tenants; empty or 0 means off."""
    with pytest.raises(ConfigError, match=f"{name} is set to '1'.*unset it"):
        check_environment({name: "1"})
    check_environment({name: "0", "PATH": "/bin"})
    check_environment({name: ""})


def test_the_environment_of_the_server(tmp_path: Path) -> None:
    """Our plugins and nothing else, no hub, no usage statistics, and the configuration by its absolute path."""
    found = server_environment(tmp_path / "nightschool.toml", Config(), {"VLLM_PLUGINS": "evil"})
    assert found["VLLM_PLUGINS"] == "nightschool,nightschool_cpu_lora"
    assert (found["HF_HUB_OFFLINE"], found["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert found["NIGHTSCHOOL_CONFIG"] == str(tmp_path / "nightschool.toml")


def test_what_will_disappoint_is_said() -> None:
    """No tenants at all, and more releases to keep than fit in memory."""
    assert "no [tenants.NAME] table" in warnings_about(Config())[0]
    tenants = {f"t{number}": TenantConfig() for number in range(9)}
    assert "max_cpu_loras is 16" in warnings_about(Config(tenants=tenants))[0]
    assert warnings_about(Config(tenants=tenants, serving=ServingConfig(max_cpu_loras=18))) == []


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        ("[serving]\nprot = 1\n", {}, "unknown key 'prot'"),
        ("", {"VLLM_SERVER_DEV_MODE": "1"}, "VLLM_SERVER_DEV_MODE is set to '1'"),
    ],
)
def test_a_bad_start_is_one_line_and_status_2(tmp_path: Path, config: str, environment: dict[str, str], message: str) -> None:
    """Before anything that takes long to import, and without a traceback."""
    path = tmp_path / "nightschool.toml"
    path.write_text(config)
    command = [sys.executable, "-X", "importtime", "-m", "nightschool_serving", "--config", str(path)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert not any(line.endswith((" torch", " vllm", " fastapi")) for line in done.stderr.splitlines())
