"""LoRA on CPUs, one matrix product per adapter in the batch. Exact: a row without an adapter is never touched.

Which rows belong to which adapter slot is computed once per change of the batch (`update_metadata`), not once per
layer: even a small model (SmolLM2-135M) has 210 adapted matrices. Rows of one adapter are usually neighbors, and are
then a view instead of a copy.

Shapes: N rows (tokens), H inputs, O outputs, R rank, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of a batch that use one adapter slot."""

    slot: int
    rows: slice | torch.Tensor


def group_rows(slots: torch.Tensor) -> tuple[Group, ...]:
    """Group the rows of `slots` [N] by adapter slot; -1 means no adapter and is in no group."""
    groups = []
    for slot in sorted(set(slots.tolist())):
        if slot < 0:
            continue
        rows = (slots == slot).nonzero()[:, 0]
        first, last = int(rows[0]), int(rows[-1])
        together = last - first + 1 == len(rows)
        groups.append(Group(slot, slice(first, last + 1) if together else rows))
    return tuple(groups)


def shrink(x_NH: torch.Tensor, a_SRH: torch.Tensor, out_NR: torch.Tensor, groups: Sequence[Group], scale: float) -> None:
    """out = scale * x @ A[slot].T for the rows of each group, 0 for every other row."""
    out_NR.zero_()
    for group in groups:
        a_RH = _slot(a_SRH, group.slot).to(x_NH.dtype)
        out_NR[group.rows, : a_RH.shape[0]] = ((_take(x_NH, group.rows) @ a_RH.T) * scale).to(out_NR.dtype)


def expand(x_NR: torch.Tensor, b_SOR: torch.Tensor, out_NO: torch.Tensor, groups: Sequence[Group], *, add: bool) -> None:
    """out += x @ B[slot].T (or =, without `add`) for the rows of each group; every other row stays as it is."""
    for group in groups:
        b_OR = _slot(b_SOR, group.slot).to(out_NO.dtype)
        width = min(b_OR.shape[0], out_NO.shape[1])  # the model may pad its vocabulary differently than the adapter
        _accumulate(out_NO[:, :width], group.rows, _take(x_NR, group.rows).to(out_NO.dtype), b_OR[:width], add=add)


def apply_linear(
    x_NH: torch.Tensor,
    a_slices: Sequence[torch.Tensor],
    b_slices: Sequence[torch.Tensor],
    widths: Sequence[int],
    out_NO: torch.Tensor,
    groups: Sequence[Group],
    scale: float,
) -> None:
    """out[:, slice] += scale * (x @ A[slot].T) @ B[slot].T for each slice (q, k, v) and the rows of each group."""
    for group in groups:
        x_nH = _take(x_NH, group.rows)
        start = 0
        for a_SRH, b_SOR, width in zip(a_slices, b_slices, widths, strict=True):
            h_nR = x_nH @ _slot(a_SRH, group.slot).to(x_nH.dtype).T
            if scale != 1.0:
                h_nR *= scale
            b_OR = _slot(b_SOR, group.slot).to(out_NO.dtype)
            _accumulate(out_NO[:, start : start + width], group.rows, h_nR.to(out_NO.dtype), b_OR, add=True)
            start += width


def _slot(weights: torch.Tensor, slot: int) -> torch.Tensor:
    """One adapter's matrix out of [S, rows, columns], or [S, 1, rows, columns] as vLLM keeps it."""
    return weights[slot, 0] if weights.dim() == 4 else weights[slot]


def _take(x: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def _accumulate(out: torch.Tensor, rows: slice | torch.Tensor, x: torch.Tensor, b: torch.Tensor, *, add: bool) -> None:
    if not add:
        out[rows] = x @ b.T
    elif isinstance(rows, slice):
        out[rows].addmm_(x, b.T)
    else:
        out.index_copy_(0, rows, out.index_select(0, rows).addmm_(x, b.T))


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM has no type information
    """vLLM's LoRA operations and batch metadata on CPUs, with every operation that a served adapter uses replaced."""

    _token_groups: tuple[Group, ...] = ()
    _sampler_groups: tuple[Group, ...] = ()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._token_groups = group_rows(self.token_lora_indices)
        self._sampler_groups = group_rows(self.sampler_indices)

    def add_shrink(self, y: Any, x: torch.Tensor, lora_a_stacked: Sequence[torch.Tensor], scale: float, **kwargs: Any) -> None:
        x = x.view(-1, x.shape[-1])
        for out, weights in zip(y, lora_a_stacked, strict=False):
            shrink(x, weights, out.view(-1, out.shape[-1]), self._token_groups, scale)

    def add_expand(
        self,
        y: torch.Tensor,
        x: Any,
        lora_b_stacked: Sequence[torch.Tensor],
        output_slices: Sequence[int],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        y = y.view(-1, y.shape[-1])
        start = offset_start
        for hidden, weights, width in zip(x, lora_b_stacked, output_slices, strict=False):
            expand(hidden, weights, y[:, start : start + width], self._token_groups, add=add_inputs)
            start += width

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        expand(x, lora_b_stacked, y, self._token_groups, add=add_inputs)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Sequence[torch.Tensor],
        lora_b_stacked: Sequence[torch.Tensor],
        scale: float,
        output_slices: Sequence[int],
        **kwargs: Any,
    ) -> None:
        apply_linear(x, lora_a_stacked, lora_b_stacked, output_slices, y, self._token_groups, scale)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        width = min(y.shape[1], lora_b_stacked.shape[-2])
        b_stacked = lora_b_stacked[..., :width, :]
        apply_linear(x, (lora_a_stacked,), (b_stacked,), (width,), y, self._sampler_groups, scale)
