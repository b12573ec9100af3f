"""Models of several architectures, tiny and random, beside what transformers' own forward pass gives for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from nightschool.errors import NightError
from nightschool_nightly.training import tree_attention
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, TokenTree, pack_tree

VOCABULARY = 64
WINDOW = 5  # far shorter than the sequences below
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # the usual 0.02 makes every prediction nearly uniform, and errors invisible
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BOTH_LAYERS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2-window": lambda: Qwen2Config(**SIZES, **BOTH_LAYERS, use_sliding_window=True, sliding_window=WINDOW),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "mistral-window": lambda: MistralConfig(**SIZES, sliding_window=WINDOW),
    "gemma2": lambda: Gemma2Config(
        **SIZES,
        **BOTH_LAYERS,
        sliding_window=WINDOW,
        query_pre_attn_scalar=4,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.0,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, **BOTH_LAYERS, sliding_window=WINDOW, query_pre_attn_scalar=4, final_logit_softcapping=3.0
    ),
    "granite": lambda: GraniteConfig(
        **SIZES, logits_scaling=4.0, attention_multiplier=0.7, embedding_multiplier=3.0, residual_multiplier=0.4
    ),
    "phi3": lambda: Phi3Config(**SIZES),
    "phi3-window": lambda: Phi3Config(**SIZES, sliding_window=WINDOW),
    "smollm3": lambda: SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1, 0]),
}
# Sequences that part early, late and not at all, all longer than the window.
SHARED = tuple(range(10, 24))
SAMPLES = [
    Sample((*SHARED, 30, 31), (40, 41, 42, 43, 44, 45, 46)),
    Sample((*SHARED, 30, 31), (40, 41, 50)),
    Sample((*SHARED, 33), (40, 41, 42)),
    Sample((5, 6, 7, 8, 9, 10, 11, 12), (13, 14, 15)),
]


def make_model(config: PretrainedConfig, folder: Path) -> Path:
    """A folder with a random model in fp32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # each different, so that a norm that is left out shows
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def own_logprobs(model: Any, samples: list[Sample]) -> Tensor:
    """What transformers' own forward pass gives every completion token, sequence by sequence."""
    found = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        logprobs = model(ids).logits[0].float().log_softmax(-1)
        places = torch.arange(len(sample.prompt_ids) - 1, ids.shape[1] - 1)
        found.append(logprobs[places, ids[0, 1:][places]])
    return torch.cat(found).detach()


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Policy]:
    """A model as transformers loads it, and the policy on it."""
    folder = make_model(CONFIGS[request.param](), tmp_path_factory.mktemp("model"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return model, Policy(folder, dtype=torch.float32, rank=4, alpha=8, seed=0)


@pytest.mark.parametrize("max_block", [2, 96])
def test_a_tree_gives_the_models_own_log_probabilities(
    loaded: tuple[Any, Policy], max_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, caps and scales of attention and logits are those of the architecture, however the tree is cut."""
    model, policy = loaded
    plan = tree_attention.plan_attention
    monkeypatch.setattr(tree_attention, "plan_attention", lambda end_L: plan(end_L, max_block=max_block))
    found, entropy = policy.tree_logprobs(pack_tree(SAMPLES), temperature=1.0)
    torch.testing.assert_close(found.detach(), own_logprobs(model, SAMPLES), rtol=0, atol=1e-4)
    assert float(entropy.min()) > 0.01, "the model is sure of everything, so nothing was compared"


def test_plain_rows_give_the_models_own_log_probabilities(loaded: tuple[Any, Policy]) -> None:
    """Rows under a causal mask, as the benchmarks of padded batches use them, know windows and caps as well."""
    model, policy = loaded
    ids = torch.tensor([[*SAMPLES[0].prompt_ids, *SAMPLES[0].completion_ids]] * 2)
    length = ids.shape[1]
    mask = torch.ones(1, length, length, dtype=torch.bool).tril()
    with torch.no_grad():
        found = policy.logits(policy.hidden(ids, torch.arange(length)[None], mask))
    torch.testing.assert_close(found.log_softmax(-1), model(ids).logits.detach().log_softmax(-1), rtol=0, atol=1e-4)


def test_the_window_is_felt(tmp_path: Path) -> None:
    """The comparison above is no comparison of two models without windows: with another window the numbers differ."""
    tree = pack_tree(SAMPLES)
    found = []
    for window in (WINDOW, WINDOW + 1, None):
        folder = make_model(MistralConfig(**SIZES, sliding_window=window), tmp_path / str(window))
        found.append(logprobs_of(Policy(folder, dtype=torch.float32, rank=4, alpha=8, seed=0), tree))
    assert float((found[0] - found[1]).abs().max()) > 0.01 and float((found[0] - found[2]).abs().max()) > 0.01


def logprobs_of(policy: Policy, tree: TokenTree) -> Tensor:
    return policy.tree_logprobs(tree, temperature=1.0)[0].detach()


def test_an_unknown_attention_argument_is_refused(tmp_path: Path) -> None:
    """gpt-oss has attention sinks: a model that would be computed wrongly is named with the argument, before any step."""
    ropes = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    sizes = {**SIZES, **ropes, "num_local_experts": 2, "num_experts_per_tok": 1}
    folder = make_model(GptOssConfig(**sizes, sliding_window=WINDOW), tmp_path)
    with pytest.raises(NightError, match=r"'gpt_oss' gives its attention the argument s_aux, which .* not implement"):
        Policy(folder, dtype=torch.float32, rank=4, alpha=8, seed=0)


def test_a_model_with_other_layers_is_refused(tmp_path: Path) -> None:
    """LFM2 has convolutions, which no attention argument shows: its predictions over a tree are not its own."""
    folder = make_model(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"] * 2), tmp_path)
    with pytest.raises(NightError, match=r"over a token tree the model type 'lfm2' predicts something else"):
        Policy(folder, dtype=torch.float32, rank=4, alpha=8, seed=0)


@pytest.mark.parametrize(("name", "value"), [("position_bias", torch.zeros(1)), ("is_causal", False), ("dropout", 0.1)])
def test_an_argument_that_would_change_the_numbers_is_refused(name: str, value: object) -> None:
    """Whatever is not implemented must be neutral; an argument that is None is an argument that is not given."""
    module = torch.nn.Module()
    tensors = [torch.zeros(1, 1, 1, 4) for _ in range(3)]
    mask = torch.zeros(1, 1, 1, 1)
    tree_attention.attention_forward(module, *tensors, mask, scaling=1.0, position_bias=None, is_causal=True, dropout=0.0)
    with pytest.raises(NightError, match=f"the argument {name}"):
        tree_attention.attention_forward(module, *tensors, mask, scaling=1.0, **{name: value})
