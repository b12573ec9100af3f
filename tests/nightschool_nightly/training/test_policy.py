"""The policy: its numbers beside transformers', and its files beside peft's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nightschool.errors import NightError
from nightschool.registry.release import ADAPTER_CONFIG, WEIGHTS
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, pack_tree

TREE = pack_tree([Sample((1, 2, 3), (4, 5)), Sample((1, 2, 3), (6,)), Sample((1, 9), (4,))])
IDS = torch.tensor([[1, 2, 3, 4, 5]])


def row_logits(policy: Policy) -> torch.Tensor:
    """Logits of one plain row."""
    mask = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    return policy.logits(policy.hidden(IDS, torch.arange(5)[None], mask)).detach()


def stock_model(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def test_a_policy_knows_what_a_token_takes_of_a_kv_cache(make_policy: Callable[..., Policy]) -> None:
    """Keys and values of 2 layers with 2 key heads of size 8, in fp32; nothing is said where layers are of two kinds."""
    policy = make_policy()
    assert policy.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4
    policy.body.config.layer_types = ["full_attention", "sliding_attention"]
    assert policy.kv_bytes_per_token is None


def test_a_new_policy_is_the_base_model(tiny_model: Path, make_policy: Callable[..., Policy]) -> None:
    """At step 0 the policy, in a tree or a row, gives the logits of the base model as transformers loads it."""
    policy = make_policy()
    expected = stock_model(tiny_model)(IDS).logits.detach()
    torch.testing.assert_close(row_logits(policy), expected, rtol=1e-5, atol=1e-5)
    with policy.base():
        base_PV = policy.tree_logits(TREE).detach()
    assert torch.equal(policy.tree_logits(TREE), base_PV)
    torch.testing.assert_close(base_PV[0], expected[0, 2], rtol=1e-5, atol=1e-5)  # the last prompt token


def test_a_saved_adapter_is_the_same_policy_in_peft(tiny_model: Path, make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """peft loads the adapter by its own names, misses none, and answers as the policy does."""
    policy = make_policy(moved=0.2)
    policy.save(tmp_path / "adapter")
    model = PeftModel.from_pretrained(stock_model(tiny_model), tmp_path / "adapter")
    loaded = {name.replace(".default", ""): p for name, p in model.named_parameters() if "lora_" in name}
    assert set(loaded) == set(policy.parameters)
    torch.testing.assert_close(model(IDS).logits.detach(), row_logits(policy), rtol=1e-5, atol=1e-5)


def test_load_brings_back_what_was_saved(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """A policy that loads an adapter is the policy that saved it; another seed before it does not matter."""
    saved, other = make_policy(moved=0.2), make_policy(seed=5)
    assert not torch.equal(row_logits(saved), row_logits(other))
    saved.save(tmp_path)
    other.load(tmp_path / WEIGHTS)
    assert torch.equal(row_logits(saved), row_logits(other))


def test_the_seed_draws_the_adapter(make_policy: Callable[..., Policy]) -> None:
    """The same seed gives the same A matrices, another seed others."""
    one, same, other = (make_policy(seed=seed).state() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if ".lora_A." in name)


def test_files_are_in_the_serving_type(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """Matrices learn in fp32 and are saved in the type they are served in, with rank and alpha beside them."""
    policy = make_policy(moved=0.2, dtype=torch.bfloat16)
    policy.save(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in policy.parameters.values()} == {torch.float32}
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (8, 16, "none")
    assert "lm_head" not in config["target_modules"] and "q_proj" in config["target_modules"]


@pytest.mark.parametrize(("bad", "dtype"), [(float("nan"), torch.float32), (float("inf"), torch.float32), (1e6, torch.float16)])
def test_numbers_that_are_not_finite_are_never_saved(
    bad: float, dtype: torch.dtype, make_policy: Callable[..., Policy], tmp_path: Path
) -> None:
    """NaN, infinity, and what becomes infinite in the serving type stop the night, and no file appears."""
    policy = make_policy(dtype=dtype)
    name = sorted(policy.parameters)[3]
    policy.parameters[name].data[0, 0] = bad
    with pytest.raises(NightError, match=f"1 adapter matrices hold numbers that are not finite, first {name}"):
        policy.save(tmp_path)
    assert not (tmp_path / WEIGHTS).exists()


def test_an_adapter_of_other_shapes_is_refused(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """An adapter of another rank, or one that would fit only by stretching, is refused and changes nothing."""
    policy = make_policy(rank=8)
    before = policy.state()
    make_policy(rank=16).save(tmp_path / "16")
    save_file({name: tensor[:1, :1].clone() for name, tensor in before.items()}, tmp_path / "stretched")
    for weights in (tmp_path / "16" / WEIGHTS, tmp_path / "stretched"):
        with pytest.raises(NightError, match="has other matrices than rank 8 on"):
            policy.load(weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state().items())


def test_an_adapter_of_other_names_is_refused(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    """A matrix too many or too few is another adapter."""
    policy = make_policy()
    tensors = policy.state()
    first = sorted(tensors)[0]
    save_file({**tensors, "extra": torch.zeros(1)}, tmp_path / "more")
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, tmp_path / "fewer")
    for name in ("more", "fewer"):
        with pytest.raises(NightError, match="has other matrices than rank 8 on"):
            policy.load(tmp_path / name)
