"""LoRA (arXiv 2106.09685) on frozen linear layers: y = W x + (alpha / r) B A x, with fp32 A and B.

Why not peft's layer: it scales and adds at the width of the output, in kernels of their own, and on a CPU that is an
eighth of a training step. Here the scale is applied at rank r, and the addition is fused into the second product. The
files are peft's, and a test holds both to the same numbers.

Shapes: A [r, in], B [out, r].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """A frozen linear layer with a trainable low-rank addition."""

    def __init__(self, base: nn.Linear, *, rank: int, alpha: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.enabled = alpha / rank, True
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        # B starts at zero, so a new adapter is the base model.
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as peft does: uniform in +-1 / sqrt(in)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        low = (x.reshape(-1, x.shape[-1]).to(y.dtype) @ self.lora_A.to(y.dtype).T) * self.scale
        return torch.addmm(y.reshape(-1, y.shape[-1]), low, self.lora_B.to(y.dtype).T).view_as(y)


def add_lora(model: nn.Module, targets: frozenset[str], *, rank: int, alpha: int) -> dict[str, LoraLinear]:
    """Replace every linear layer whose last name is in `targets` and freeze the rest; the new layers, by full name."""
    model.requires_grad_(False)
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and _last(name) in targets}
    layers = {}
    for name in sorted(found):
        layers[name] = LoraLinear(found[name], rank=rank, alpha=alpha)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layers[name])
    return layers


def linear_targets(model: nn.Module, *, skip: frozenset[str]) -> tuple[str, ...]:
    """Last names of all linear layers but `skip`, sorted."""
    names = {_last(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return tuple(sorted(names - skip))


@contextmanager
def disabled(layers: dict[str, LoraLinear]) -> Iterator[None]:
    """Inside, the layers are the base model."""
    for layer in layers.values():
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enabled = True


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
