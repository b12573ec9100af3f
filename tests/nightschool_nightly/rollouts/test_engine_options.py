"""What vLLM is started with, without starting it."""

from __future__ import annotations

import json

from nightschool_nightly.rollouts.engine_options import EngineSettings, engine_options, needed_kv_bytes, set_environment

SETTINGS = EngineSettings(
    dtype="bfloat16", targets=("k_proj", "q_proj"), max_lora_rank=16, max_model_len=512, max_num_seqs=32, kv_cache_bytes=3 << 30
)


def test_both_backends_sample_what_the_trainer_computes() -> None:
    """The model's type, adapters on the policy's layers, and log-probabilities at the temperature of sampling."""
    for on_cpu in (True, False):
        options = engine_options(SETTINGS, on_cpu=on_cpu)
        assert (options["dtype"], options["max_model_len"], options["max_num_seqs"]) == ("bfloat16", 512, 32)
        assert (options["enable_lora"], options["lora_target_modules"]) == (True, ["k_proj", "q_proj"])
        assert (options["max_lora_rank"], options["logprobs_mode"]) == (16, "processed_logprobs")


def test_on_a_cpu_nothing_is_measured_or_compiled() -> None:
    """An eager model, a KV cache of the stated size, small blocks, and prompts that share their last block."""
    options = engine_options(SETTINGS, on_cpu=True)
    assert (options["enforce_eager"], options["kv_cache_memory_bytes"], options["block_size"]) == (True, 3 * 2**30, 32)
    assert options["kv_transfer_config"]["kv_connector"] == "PromptTailConnector"


def test_a_night_keeps_no_more_keys_and_values_than_its_longest_batch_can_use() -> None:
    """Every rollout at full length, each with a block begun; and always one request of the longest length allowed."""
    block = 32
    assert needed_kv_bytes(168, 1000, max_num_seqs=100, max_model_len=512) == 1000 * (100 * (168 + block) + block)
    assert needed_kv_bytes(10, 1000, max_num_seqs=2, max_model_len=4096) == 1000 * (4096 + block + block)


def test_on_a_gpu_vllm_chooses_for_itself() -> None:
    """No option of the CPU is forced on a GPU."""
    only_on_cpu = set(engine_options(SETTINGS, on_cpu=True)) - set(engine_options(SETTINGS, on_cpu=False))
    assert only_on_cpu == {"block_size", "enforce_eager", "kv_cache_memory_bytes", "kv_transfer_config"}


def test_options_are_plain_values() -> None:
    """They hold no object of vLLM, so they can be made, compared and shown without it."""
    for on_cpu in (True, False):
        options = engine_options(SETTINGS, on_cpu=on_cpu)
        assert json.loads(json.dumps(options)) == options


def test_the_environment_is_the_nights_but_for_the_log_level() -> None:
    """What decides how vLLM runs is set whatever was there; how much it logs is left to a person who said so."""
    environ = {"VLLM_PLUGINS": "lora_filesystem_resolver", "HOME": "/home/cron", "VLLM_CPU_KVCACHE_SPACE": "40"}
    set_environment(environ)
    assert environ == {
        "HOME": "/home/cron",
        "VLLM_PLUGINS": "nightschool_cpu_lora",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    chosen = {"VLLM_LOGGING_LEVEL": "DEBUG"}
    set_environment(chosen)
    assert chosen["VLLM_LOGGING_LEVEL"] == "DEBUG"
