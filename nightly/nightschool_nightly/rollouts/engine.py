"""Samples answers from the current policy in vLLM, in this process, with the candidate adapter hot-loaded after every step.

Every adapter version has a name of its own, because vLLM keys its prefix cache by name and path: the same name with new weights
would answer from stale keys and values. Seeds are per prompt, so the same night samples the same answers again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nightschool.errors import MissingExtraError, NightError
from nightschool_nightly.rollouts.sampler import Ask, Rollout


class RolloutEngine:
    """An in-process vLLM engine that serves the base model and the newest adapter handed to it."""

    def __init__(
        self,
        model: Path,
        *,
        adapters: Path,
        targets: Sequence[str],
        dtype: str,
        max_lora_rank: int,
        max_model_len: int,
        max_num_seqs: int,
        kv_cache_gib: int,
    ) -> None:
        # Only our own plugin: in-tree resolvers would look for adapters by name. Read by vLLM when it is imported.
        os.environ["VLLM_PLUGINS"] = "nightschool_cpu_lora"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = os.environ["HF_HUB_OFFLINE"] = "1"
        try:
            from vllm import LLM
            from vllm.config import KVTransferConfig
            from vllm.platforms import current_platform
        except ModuleNotFoundError as error:
            raise MissingExtraError("sampling rollouts", "serving-cpu", error.name or "vllm") from error
        on_cpu = current_platform.is_cpu()
        # With an eager model and a KV cache of a stated size, vLLM has nothing to measure or compile and skips its warm-up.
        options: dict[str, Any] = (
            {
                "block_size": 32,
                "enforce_eager": True,
                "kv_cache_memory_bytes": kv_cache_gib * 2**30,
                "kv_transfer_config": KVTransferConfig(
                    kv_connector="PromptTailConnector",
                    kv_connector_module_path="nightschool_nightly.rollouts.prompt_tails",
                    kv_role="kv_both",
                ),
            }
            if on_cpu
            else {}
        )
        self._shares_tails = on_cpu
        if on_cpu:
            # vLLM compiles one small sampling function even for an eager model: seconds at the first step, and it needs a C++ compiler.
            import torch

            torch.compiler.set_stance("force_eager")
        self._llm = LLM(
            str(model),
            dtype=dtype,
            enable_lora=True,
            max_lora_rank=max_lora_rank,
            max_loras=1,
            lora_target_modules=list(targets),
            max_cpu_loras=2,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            **options,
        )
        self._folder = adapters
        self._adapter: Any = None
        self._versions = 0

    def use(self, save: Callable[[Path], None] | None) -> None:
        """Answer with the adapter that `save(folder)` writes into a new folder; None means the base model."""
        from vllm.lora.request import LoRARequest

        if self._adapter is not None:
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            shutil.rmtree(self._adapter.lora_path, ignore_errors=True)
            self._adapter = None
        if save is not None:
            self._versions += 1
            path = self._folder / f"version-{self._versions}"
            save(path)
            self._adapter = LoRARequest(lora_name=f"night.v{self._versions}", lora_int_id=self._versions, lora_path=str(path))

    def sample(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """Sampled answers, for each ask `num_samples` of them, in order."""
        from vllm import SamplingParams

        # A resumed night starts with an empty cache; clearing it here makes every step alike.
        self._llm.reset_prefix_cache(reset_connector=self._shares_tails)
        parameters = [
            SamplingParams(
                n=ask.num_samples,
                temperature=ask.temperature,
                top_p=ask.top_p,
                max_tokens=ask.max_tokens,
                seed=ask.seed,
                stop=list(ask.stop) or None,
                logprobs=0,
            )
            for ask in asks
        ]
        prompts = [{"prompt_token_ids": list(ask.prompt_ids)} for ask in asks]
        if self._shares_tails and any(ask.num_samples > 1 for ask in asks):
            first_token = SamplingParams(max_tokens=1, temperature=0.0)
            self._llm.generate(prompts, first_token, lora_request=self._adapter, use_tqdm=False)
        outputs = self._llm.generate(prompts, parameters, lora_request=self._adapter, use_tqdm=False)
        return [[_rollout(completion) for completion in output.outputs] for output in outputs]


def _rollout(completion: Any) -> Rollout:
    entries: Sequence[Mapping[int, Any]] | None = completion.logprobs
    if entries is None or len(entries) != len(completion.token_ids):
        raise NightError(
            "the engine returned a rollout without the log-probability of each token; such a rollout cannot be trained on"
        )
    logprobs = tuple(float(entry[token].logprob) for token, entry in zip(completion.token_ids, entries, strict=True))
    return Rollout(tuple(completion.token_ids), logprobs, completion.text, completion.finish_reason != "length")
