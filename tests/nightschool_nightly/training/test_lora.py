"""Our LoRA layer against peft's, which is what files are exchanged with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from nightschool_nightly.training.lora import LoraLinear, add_lora, disabled, linear_targets

RANK, ALPHA = 4, 12


class Block(nn.Module):
    """Two linear layers, one of them with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.down(torch.tanh(self.up(x)))
        return found


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


def with_values(layers: dict[str, LoraLinear]) -> dict[str, LoraLinear]:
    """The layers after some training: B is no longer zero."""
    for layer in layers.values():
        layer.lora_B.data.normal_(0.0, 0.5)
    return layers


def test_output_and_gradients_are_those_of_peft(block: Block) -> None:
    """From the same A and B, our layer and peft's give the same output and the same gradients of A, B and the input."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["up", "down"])
    theirs: Any = inject_adapter_in_model(config, copy.deepcopy(block))
    layers = with_values(add_lora(block, frozenset({"up", "down"}), rank=RANK, alpha=ALPHA))
    for name, layer in layers.items():
        getattr(theirs, name).lora_A["default"].weight.data.copy_(layer.lora_A.data)
        getattr(theirs, name).lora_B["default"].weight.data.copy_(layer.lora_B.data)
    x, pull = torch.randn(2, 3, 6, requires_grad=True), torch.randn(2, 3, 6)
    ours_y, theirs_y = block(x), theirs(x)
    torch.testing.assert_close(ours_y, theirs_y, rtol=1e-5, atol=1e-6)
    ours_at = [x, *(p for layer in layers.values() for p in (layer.lora_A, layer.lora_B))]
    theirs_at = [
        x,
        *(
            p.weight
            for name in layers
            for p in (getattr(theirs, name).lora_A["default"], getattr(theirs, name).lora_B["default"])
        ),
    ]
    ours, expected = torch.autograd.grad(ours_y, ours_at, pull), torch.autograd.grad(theirs_y, theirs_at, pull)
    for found, other in zip(ours, expected, strict=True):
        assert found.abs().max() > 0
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-6)


def test_a_new_adapter_is_the_base(block: Block) -> None:
    """B starts at zero, so before the first step nothing has changed, to the bit."""
    x = torch.randn(5, 6)
    before = block(x)
    layers = add_lora(block, frozenset({"up", "down"}), rank=RANK, alpha=ALPHA)
    assert torch.equal(block(x), before)
    assert all(layer.lora_A.abs().sum() > 0 for layer in layers.values())


def test_disabled_layers_are_the_base_and_come_back(block: Block) -> None:
    """Inside `disabled` the layers answer as before LoRA was added; after it, even after an error, as they learned."""
    x = torch.randn(5, 6)
    base = block(x)
    layers = with_values(add_lora(block, frozenset({"up"}), rank=RANK, alpha=ALPHA))
    learned = block(x)
    assert not torch.allclose(base, learned)
    with pytest.raises(KeyError), disabled(layers):
        assert torch.equal(block(x), base)
        raise KeyError
    assert torch.equal(block(x), learned)


def test_only_named_layers_are_replaced_and_only_lora_learns(block: Block) -> None:
    """Layers of other names stay as they are, and every weight but A and B is frozen."""
    layers = add_lora(block, frozenset({"down"}), rank=RANK, alpha=ALPHA)
    assert list(layers) == ["down"] and type(block.up) is nn.Linear
    assert [name for name, p in block.named_parameters() if p.requires_grad] == ["down.lora_A", "down.lora_B"]


def test_linear_targets_are_all_but_the_skipped(block: Block) -> None:
    """Targets are last names, each once, sorted."""
    assert linear_targets(nn.Sequential(block, copy.deepcopy(block)), skip=frozenset({"up"})) == ("down",)
    assert linear_targets(nn.Sequential(block, copy.deepcopy(block)), skip=frozenset()) == ("down", "up")
