"""What `nightschool serve` checks and starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nightschool.config.settings import Config, ModelConfig, ServingConfig, TenantConfig
from nightschool.errors import ConfigError
from nightschool.machine import Machine
from nightschool_serving.launch import (
    DANGEROUS_VARIABLES,
    check_environment,
    describe_sizes,
    server_arguments,
    server_environment,
    warnings_about,
)

EIGHT_CORES = Machine(cores=8, memory_bytes=32 << 30, available_bytes=30 << 30, has_bf16=False, name="a Xeon")


@pytest.mark.parametrize("name", DANGEROUS_VARIABLES)
def test_a_dangerous_switch_stops_the_start(name: str) -> None:
    """Each would undo the isolation of tenants; empty or 0 means off."""
    with pytest.raises(ConfigError, match=f"{name} is set to '1'.*unset it"):
        check_environment({name: "1"})
    check_environment({name: "0", "PATH": "/bin"})
    check_environment({name: ""})


def test_the_environment_of_the_server(tmp_path: Path) -> None:
    """Our plugins and nothing else, no hub, no usage statistics, and the configuration by its absolute path."""
    found = server_environment(tmp_path / "nightschool.toml", Config(), {"VLLM_PLUGINS": "evil"}, EIGHT_CORES)
    assert found["VLLM_PLUGINS"] == "nightschool,nightschool_cpu_lora"
    assert (found["HF_HUB_OFFLINE"], found["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert found["NIGHTSCHOOL_CONFIG"] == str(tmp_path / "nightschool.toml")


def test_sizes_come_from_the_machine(tmp_path: Path) -> None:
    """One core is left to HTTP, and an eighth of the memory holds keys and values; a person reads both at the start."""
    config = Config(model=ModelConfig(dtype="float32"))
    environment = server_environment(tmp_path / "nightschool.toml", config, {}, EIGHT_CORES)
    arguments = server_arguments(config, [], EIGHT_CORES)
    assert environment["OMP_NUM_THREADS"] == "7"
    assert arguments[arguments.index("--kv-cache-memory-bytes") + 1] == str(4 << 30)
    assert describe_sizes(arguments, environment) == "float32, 7 compute threads, 4.0 GiB of KV cache"


def test_sizes_of_the_settings_go_first(tmp_path: Path) -> None:
    """What nightschool.toml says is taken as it stands, also where it is more than the machine would be given."""
    config = Config(model=ModelConfig(dtype="bfloat16"), serving=ServingConfig(threads=1, kv_cache_gib=20))
    environment = server_environment(tmp_path / "nightschool.toml", config, {"OMP_NUM_THREADS": "5"}, EIGHT_CORES)
    sizes = describe_sizes(server_arguments(config, [], EIGHT_CORES), environment)
    assert sizes == "bfloat16, 1 compute thread, 20.0 GiB of KV cache"


def test_the_type_is_chosen_before_vllm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM gets the type that nights use on this machine, and not its own idea of `auto`, the type of the checkpoint."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    arguments = server_arguments(Config(), [], EIGHT_CORES)
    assert arguments[arguments.index("--dtype") + 1] == "float32"


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
