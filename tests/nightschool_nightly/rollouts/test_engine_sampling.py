"""Requests as serving samples them: the same parameters, and a real engine that follows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nightschool_nightly.rollouts.engine import _sampling_parameters
from nightschool_nightly.rollouts.sampler import SampleRequest

pytestmark = pytest.mark.vllm

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"top_k": 20, "min_p": 0.1},
        {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1},
        {"min_tokens": 3, "logit_bias": {"7": 2.5}},
        {"response_format": {"type": "json_object"}},
        {"response_format": SCHEMA},
    ],
)
def test_parameters_are_those_of_vllms_own_endpoint(others: dict[str, Any]) -> None:
    """What the chat endpoint makes of a body is what a night samples with."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.sampling_params import RequestOutputKind

    body = {"messages": [], "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["x"], **others}
    theirs = ChatCompletionRequest.model_validate(body).to_sampling_params(9, {})
    theirs.logprobs, theirs.output_kind, theirs.skip_clone = 0, RequestOutputKind.CUMULATIVE, False
    ours = _sampling_parameters(SampleRequest((1,), 1, 9, 0.5, 7, top_p=0.9, stop=("x",), others=others))
    assert ours == theirs


_PROGRAM = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
from nightschool.registry.base_model import base_model_folder
from nightschool_nightly.rollouts.engine import RolloutEngine
from nightschool_nightly.rollouts.engine_options import EngineSettings
from nightschool_nightly.rollouts.sampler import SampleRequest

folder = base_model_folder("smollm2-135m-instruct")
settings = EngineSettings(dtype="float32", targets=("q_proj",), max_lora_rank=8, max_model_len=256, max_num_seqs=16, kv_cache_bytes=1 << 30)
engine = RolloutEngine(folder, settings, adapters=Path(sys.argv[1]))
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = [{"role": "user", "content": "Which queue?"}]
prompt = tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
(token,) = tokenizer.encode("z", add_special_tokens=False)

def form(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}

enum = {"type": "object", "properties": {"queue": {"enum": ["card", "loan"]}}, "required": ["queue"], "additionalProperties": False}
cases = {
    "plain": {},
    "schema": form(enum),
    "impossible": form({"type": "no such type"}),
    "top_k": {"top_k": 1},
    "bias": {"logit_bias": {str(token): 100}},
    "unknown_token": {"logit_bias": {"99999999": 1}},
}
requests = [SampleRequest(prompt, 1, 24, 1.0, 7, others=others) for others in cases.values()]
requests.append(SampleRequest(prompt, 1, 24, 0.0, 7))
answers = engine.sample(requests)
texts = {name: [rollout.text for rollout in found] for name, found in zip([*cases, "greedy"], answers, strict=True)}
print(json.dumps(texts))
"""


@pytest.mark.slow
def test_an_engine_follows_the_request_and_refuses_by_itself(tmp_path: Path) -> None:
    """A schema shapes the answer, top_k and a bias bend it; what vLLM cannot follow has no answer and stops nothing."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    texts = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(texts["schema"][0])["queue"] in ("card", "loan")
    assert texts["top_k"] == texts["greedy"] != texts["plain"]
    assert set(texts["bias"][0]) == {"z"}
    assert texts["impossible"] == texts["unknown_token"] == []
