"""What vLLM is started with: its arguments on each backend, and its environment. Nothing here imports vLLM."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

# Read by vLLM when it is imported, so set before.
_ENVIRONMENT = {
    # Only our own plugin: the resolvers that come with vLLM would look for adapters by name.
    "VLLM_PLUGINS": "nightschool_cpu_lora",
    # The engine runs in this process: no second interpreter to start, and PyTorch's settings here hold for it.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # A night sends nothing to anybody and fetches nothing: the model is in a folder.
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# Tokens of a KV cache block on CPUs. The prefix cache shares whole blocks only, so small ones are better. vLLM's CPU
# kernels want multiples of 32; its default there is 128.
_BLOCK_TOKENS = 32
# A person who looks for a fault may set another level.
_DEFAULT_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What the engine must fit."""

    dtype: str
    """Type of the base weights, as in [model] dtype."""
    targets: tuple[str, ...]
    """Last names of the linear layers that have an adapter."""
    max_lora_rank: int
    max_model_len: int
    """Longest prompt and answer together, in tokens."""
    max_num_seqs: int
    """Most rollouts in one batch."""
    kv_cache_bytes: int
    """Size of the KV cache on a CPU. On a GPU vLLM measures what is free."""


def engine_options(settings: EngineSettings, *, on_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`, beside the model."""
    return _common_options(settings) | (_cpu_options(settings) if on_cpu else _cuda_options())


def _common_options(settings: EngineSettings) -> dict[str, Any]:
    return {
        "dtype": settings.dtype,
        "enable_lora": True,
        "max_lora_rank": settings.max_lora_rank,
        "max_loras": 1,  # the candidate, or none for the base model
        "lora_target_modules": list(settings.targets),
        "max_cpu_loras": 2,  # room for the version before, beside the one in use
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        # Log-probabilities of the distribution that was sampled from, temperature included: the trainer's have it, too.
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
    }


def _cpu_options(settings: EngineSettings) -> dict[str, Any]:
    """With an eager model and a KV cache of a stated size, vLLM has nothing to measure or compile: no warm-up."""
    return {
        "block_size": _BLOCK_TOKENS,
        "enforce_eager": True,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        "kv_transfer_config": {
            "kv_connector": "PromptTailConnector",
            "kv_connector_module_path": "nightschool_nightly.rollouts.prompt_tails",
            "kv_role": "kv_both",
        },
    }


def _cuda_options() -> dict[str, Any]:
    """vLLM's own choices: its blocks are smaller there, and compiling pays for itself."""
    return {}


def needed_kv_bytes(longest: int, bytes_per_token: int | None, *, max_num_seqs: int, max_model_len: int) -> int | None:
    """The most of a KV cache that can be in use at a time, with `longest` tokens of prompt and answer in every rollout.

    vLLM goes through all blocks of the cache in turn, so what is beyond this would become memory that nobody reads. None where
    nobody knows how much a token takes.
    """
    if bytes_per_token is None:
        return None
    rollouts = max_num_seqs * (longest + _BLOCK_TOKENS)  # each may begin a block that it does not fill
    # vLLM does not start unless one request of the full length fits; one block more is its own.
    return bytes_per_token * (max(rollouts, max_model_len + _BLOCK_TOKENS) + _BLOCK_TOKENS)


def set_environment(environ: MutableMapping[str, str]) -> None:
    """Write into `environ` (`os.environ` of the night's process) what vLLM is to find there."""
    environ.update(_ENVIRONMENT)
    environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # vLLM would obey it, and not the size in the night's manifest
    for name, value in _DEFAULT_ENVIRONMENT.items():
        environ.setdefault(name, value)
