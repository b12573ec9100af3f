"""The log-probabilities that vLLM samples with against the trainer's, on several architectures, adapters loaded anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

# vLLM wants a process of its own. Models are tiny and random, with the packaged model's tokenizer, which vLLM asks for.
_PROGRAM = """
import json, os, shutil, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GraniteConfig, LlamaConfig, Phi3Config
from nightschool.registry.base_model import PACKAGED, base_model_folder
from nightschool_nightly.rollouts.engine_options import EngineSettings, engine_options, set_environment
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, pack_tree

name, dtype, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
sizes = dict(vocab_size=49152, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=32,
    num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=2)
if name in ("phi3",):
    sizes |= dict(hidden_size=128)  # this type has no head_dim of its own
config = {
    "llama": lambda: LlamaConfig(**sizes),
    "phi3": lambda: Phi3Config(**sizes),
    "granite": lambda: GraniteConfig(**sizes, logits_scaling=4.0, attention_multiplier=0.1, embedding_multiplier=3.0,
        residual_multiplier=0.4),
    "gemma2": lambda: Gemma2Config(**sizes, sliding_window=16, query_pre_attn_scalar=32, attn_logit_softcapping=2.0,
        final_logit_softcapping=8.0),
}[name]()
shutil.copytree(base_model_folder(PACKAGED), folder / "model", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / "model")

policies = [Policy(folder / "model", dtype=getattr(torch, dtype), rank=8, alpha=16, seed=seed) for seed in range(3)]
def adapters(version):  # the last policy stays the base model
    for seed, policy in enumerate(policies[:2]):
        torch.manual_seed(10 * version + seed)
        for parameter in policy.parameters.values():
            parameter.data.normal_(0.0, 0.1 * version)
        policy.save(folder / f"{seed}.v{version}")
    return [LoRARequest(f"{s}.v{version}", 2 * version + s + 1, str(folder / f"{s}.v{version}")) for s in range(2)] + [None]

set_environment(os.environ)
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
torch.compiler.set_stance("force_eager")
settings = EngineSettings(dtype=dtype, targets=policies[0].targets, max_lora_rank=8, max_model_len=256, max_num_seqs=16, kv_cache_bytes=1 << 30)
llm = LLM(str(folder / "model"), **{**engine_options(settings, on_cpu=True), "max_loras": 2, "max_cpu_loras": 4})
prompts = [tuple((number * 7919 + shift) % 49000 + 100 for number in range(40)) for shift in (0, 5)]
def sample(loras):  # every adapter and the base model in one batch
    asked = [(prompt, which) for prompt in prompts for which in range(3)]
    parameters = [SamplingParams(n=2, max_tokens=24, temperature=0.7, seed=7 * number, logprobs=0, ignore_eos=True) for number in range(6)]
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt, _ in asked], parameters,
        lora_request=[loras[which] for _, which in asked], use_tqdm=False)
    return [(prompt, which, completion) for (prompt, which), output in zip(asked, outputs) for completion in output.outputs]
sample(adapters(1))
found = {}
answers = sample(adapters(2))  # hot-loaded while the engine runs, in place of the first versions
for which in range(3):
    mine = [(prompt, completion) for prompt, number, completion in answers if number == which]
    tree = pack_tree([Sample(prompt, tuple(completion.token_ids)) for prompt, completion in mine])
    ours = policies[which].tree_logprobs(tree, temperature=0.7)[0].detach()
    theirs = torch.tensor([entry[token].logprob for _, c in mine for token, entry in zip(c.token_ids, c.logprobs)])
    with torch.no_grad(), policies[which].base():
        base = policies[which].tree_logprobs(tree, temperature=0.7)[0]
    differences = (ours - theirs).abs()
    found[which] = {"tokens": len(ours), "mean": float(differences.mean()), "p99": float(differences.quantile(0.99)),
        "adapter": float((ours - base).abs().mean())}
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("name", "dtype", "mean", "p99"),
    [
        ("llama", "float32", 1e-4, 1e-3),
        ("phi3", "float32", 1e-4, 1e-3),  # q, k and v are one layer, and so are gate and up
        ("granite", "float32", 1e-4, 1e-3),
        ("llama", "bfloat16", 0.2, 1.0),  # the bounds at which a night stops; these weights are rounded as coarsely as any
    ],
)
def test_the_engine_samples_from_the_distribution_that_is_learned(
    name: str, dtype: str, mean: float, p99: float, tmp_path: Path
) -> None:
    """Two adapters, loaded while the engine runs, and the base model in one batch: each token has the trainer's chance."""
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, name, dtype, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "GOMP_SPINCOUNT": "1000"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    print(name, dtype, found)
    for which, numbers in found.items():
        assert numbers["tokens"] == 96
        assert numbers["mean"] <= mean and numbers["p99"] <= p99, (which, numbers)
        assert (numbers["adapter"] > 0.3) == (which != "2"), "the adapters change nothing, so nothing was compared"
