"""Turns nightschool.toml into the command line and environment of one vLLM server. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from nightschool.config.settings import Config
from nightschool.dtype import resolve_dtype, serves_on_cpu
from nightschool.errors import ConfigError
from nightschool.machine import Machine, compute_threads, kv_cache_bytes
from nightschool.registry.base_model import base_model_folder
from nightschool_serving.front.configured_keys import CONFIG_VARIABLE
from nightschool_serving.releases.routing import BASE_ALIAS

# Each would switch on something that would undo what the guard, the routes or the replica ensure.
DANGEROUS_VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "it adds routes that reset and pause the engine",
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "unknown model names would silently get the base model",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "it adds routes that load adapters from any path",
    "VLLM_USE_RUST_FRONTEND": "the tenant guard and the routes do not exist there",
    "VLLM_API_KEY": "clients authenticate with their tenant's key",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "it writes tenants' answers to the log",
}
PLUGINS = "nightschool,nightschool_cpu_lora"


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse switches that would undo the isolation of tenants."""
    for name, why in DANGEROUS_VARIABLES.items():
        if environment.get(name, "") not in ("", "0"):
            raise ConfigError(f"{name} is set to {environment[name]!r}, but {why}; unset it to serve tenants")


def server_environment(config_path: Path, config: Config, environment: Mapping[str, str], machine: Machine) -> dict[str, str]:
    """What to add to `environment` for the vLLM server."""
    needed = {
        CONFIG_VARIABLE: str(config_path.resolve()),
        "VLLM_PLUGINS": PLUGINS,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Otherwise vLLM takes the path of a missing adapter for the name of a model on the hub, and downloads it.
        "HF_HUB_OFFLINE": "1",
    }
    if serves_on_cpu():
        # The worker runs in the engine's process: one process less to import everything, and no queue between the two.
        needed["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # One core is left to HTTP. With compute threads on every core, all of them wait whenever HTTP uses one: on
        # two cores, with 32 requests at a time, two threads answered 8.7 requests/s and one thread 19.4.
        needed["OMP_NUM_THREADS"] = str(compute_threads(machine, config.serving.threads, environment, spare=1))
    return needed


def server_arguments(config: Config, extra: Sequence[str], machine: Machine) -> list[str]:
    """vLLM's command line; `ConfigError` when [model] dtype is 'auto' and cannot be found out."""
    serving = config.serving
    options = {
        "model": base_model_folder(config.model.path),
        "served-model-name": BASE_ALIAS,
        "dtype": resolve_dtype(config.model.dtype),
        "host": serving.host,
        "port": serving.port,
        "max-loras": serving.max_loras,
        "max-cpu-loras": max(serving.max_cpu_loras, serving.max_loras),
        "max-lora-rank": serving.max_lora_rank,
        "max-model-len": serving.max_model_len,
        # After the temperature is applied, as the trainer computes them.
        "logprobs-mode": "processed_logprobs",
        "middleware": "nightschool_serving.front.guard.TenantGuard",
        # Seconds for running answers to finish after SIGTERM; vLLM's default of 0 cuts them off.
        "shutdown-timeout": 120,
    }
    flags = ["--enable-lora", "--disable-fastapi-docs", "--disable-uvicorn-access-log"]
    if serves_on_cpu():
        # Tokens per cache block. Only whole blocks are shared, and vLLM's default on CPUs, 128, is longer than most
        # shared prefixes.
        options |= {"block-size": 32, "worker-extension-cls": "nightschool_serving.cpu_lora.LoraProbe"}
        options["kv-cache-memory-bytes"] = kv_cache_bytes(machine, config.serving.kv_cache_gib)
        flags.append("--enforce-eager")
    return [*(part for name, value in options.items() for part in (f"--{name}", str(value))), *flags, *extra]


def describe_sizes(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """What was chosen for this machine, out of vLLM's command line and environment, for the line that a person reads."""
    chosen = dict(pairwise(arguments))
    parts = [chosen["--dtype"]]
    if threads := environment.get("OMP_NUM_THREADS"):
        parts.append(f"{threads} compute thread{'s' if threads != '1' else ''}")
    if kv_bytes := chosen.get("--kv-cache-memory-bytes"):
        parts.append(f"{int(kv_bytes) / 2**30:.1f} GiB of KV cache")
    return ", ".join(parts)


def warnings_about(config: Config) -> list[str]:
    """What works, but not as the user may expect."""
    found = []
    if not config.tenants:
        found.append("nightschool.toml has no [tenants.NAME] table: every request will be refused")
    if (needed := 2 * len(config.tenants)) > config.serving.max_cpu_loras:
        found.append(
            f"[serving] max_cpu_loras is {config.serving.max_cpu_loras}; {len(config.tenants)} tenants keep {needed} releases "
            "in memory (the current and the one before), the rest is read from disk again while requests wait"
        )
    return found
