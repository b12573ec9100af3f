"""The sampler of a night: vLLM in this process, with the candidate adapter loaded anew after every step.

Every version of the adapter has a name of its own, because vLLM keys its prefix cache by the adapter's name and path:
new weights under an old name would answer from stale keys and values. Seeds are per prompt, so the same night samples
the same answers again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nightschool.errors import MissingExtraError, NightError
from nightschool_nightly.rollouts.engine_options import EngineSettings, engine_options, set_environment
from nightschool_nightly.rollouts.sampler import Rollout, SampleRequest, SaveAdapter


class RolloutEngine:
    """An in-process vLLM engine that answers with the base model or with the newest adapter handed to it."""

    def __init__(self, model: Path, settings: EngineSettings, *, adapters: Path) -> None:
        """Start vLLM on the model in folder `model`; each version of the adapter is written below `adapters`."""
        set_environment(os.environ)
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ModuleNotFoundError as error:
            raise MissingExtraError("sampling rollouts", "serving-cpu", error.name or "vllm") from error
        on_cpu = bool(current_platform.is_cpu())
        if on_cpu:
            # vLLM compiles one small sampling function even for an eager model. It takes seconds at the first step and
            # a C++ compiler.
            import torch

            torch.compiler.set_stance("force_eager")
        self._shares_tails = on_cpu  # see prompt_tails
        self._llm = LLM(str(model), **engine_options(settings, on_cpu=on_cpu))
        self._folder = adapters
        self._adapter: Any = None  # vLLM's LoRARequest, or None for the base model
        self._num_versions = 0

    def use_adapter(self, save: SaveAdapter | None) -> None:
        """Answer with the adapter that `save` writes into a new folder; None means the base model."""
        from vllm.lora.request import LoRARequest

        if self._adapter is not None:
            self._llm.llm_engine.remove_lora(self._adapter.lora_int_id)
            shutil.rmtree(self._adapter.lora_path, ignore_errors=True)
            self._adapter = None
        if save is not None:
            self._num_versions += 1
            number = self._num_versions
            path = self._folder / f"version-{number}"
            save(path)
            self._adapter = LoRARequest(lora_name=f"night.v{number}", lora_int_id=number, lora_path=str(path))

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        """Sampled answers, for each request `num_samples` of them, in order; none for one that vLLM refuses."""
        # A resumed night starts with an empty cache. What comes out of the cache may differ in rounding from what is
        # computed, so every step starts with an empty one.
        self._llm.reset_prefix_cache(reset_connector=self._shares_tails)
        parameters = list(map(_sampling_parameters, requests))
        accepted = [number for number in range(len(requests)) if self._accepts(parameters[number])]
        prompts = [{"prompt_token_ids": list(requests[number].prompt_ids)} for number in accepted]
        if self._shares_tails and any(request.num_samples > 1 for request in requests):
            self._compute_prompts(prompts)
        outputs = self._llm.generate(
            prompts, [parameters[number] for number in accepted], lora_request=self._adapter, use_tqdm=False
        )
        answers: list[list[Rollout]] = [[] for _ in requests]
        for number, output in zip(accepted, outputs, strict=True):
            answers[number] = [_rollout(completion) for completion in output.outputs]
        return answers

    def _accepts(self, parameters: Any) -> bool:
        """Whether vLLM takes a request with a schema or with token ids: it alone knows which of them it can follow.

        Everything else was checked when the examples were chosen (`examples.sampling`).
        """
        from vllm.exceptions import VLLMClientError

        if parameters.structured_outputs is None and not parameters.logit_bias:
            return True
        config = self._llm.llm_engine.vllm_config
        try:
            parameters.verify(
                config.model_config,
                config.speculative_config,
                config.structured_outputs_config,
                self._llm.get_tokenizer(),
            )
        except (VLLMClientError, ValueError):  # its own checks raise the first, the libraries that read a schema the second
            return False
        return True

    def _compute_prompts(self, prompts: Sequence[Mapping[str, list[int]]]) -> None:
        """Sample one token of each prompt, so that the rollouts after it share its last block (see `prompt_tails`)."""
        from vllm import SamplingParams

        one_token = SamplingParams(max_tokens=1, temperature=0.0)
        self._llm.generate(prompts, one_token, lora_request=self._adapter, use_tqdm=False)


def _sampling_parameters(request: SampleRequest) -> Any:
    """What vLLM's own endpoint makes of such a request; a test compares the two."""
    from vllm import SamplingParams

    others = {name: value for name, value in request.others.items() if name != "response_format"}
    return SamplingParams.from_optional(
        n=request.num_samples,
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        seed=request.seed,
        stop=list(request.stop) or None,
        logprobs=0,  # of the sampled token alone, no alternatives
        structured_outputs=_structured_outputs(request.others.get("response_format")),
        **others,
    )


def _structured_outputs(response_format: Mapping[str, Any] | None) -> Any:
    """vLLM's form of a response format, for which it has no parameter of that name below its endpoints."""
    from vllm.sampling_params import StructuredOutputsParams

    if response_format is None or response_format["type"] == "text":
        return None
    if response_format["type"] == "json_object":
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(json=response_format["json_schema"]["schema"])


def _rollout(completion: Any) -> Rollout:
    """The rollout in one of vLLM's outputs; `NightError` if a log-probability is missing: 0 would be a wrong one."""
    entries: Sequence[Mapping[int, Any]] | None = completion.logprobs
    if entries is None or len(entries) != len(completion.token_ids):
        raise NightError(
            f"vLLM returned {len(entries or ())} log-probabilities for {len(completion.token_ids)} tokens of a rollout; "
            "it cannot be trained on without one for each token; report this with your version of vLLM"
        )
    logprobs = tuple(float(entry[token].logprob) for token, entry in zip(completion.token_ids, entries, strict=True))
    return Rollout(tuple(completion.token_ids), logprobs, completion.text, completion.finish_reason != "length")
