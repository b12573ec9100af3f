"""A share of what a night changed: the adapter somewhere between the parent's and the one that was learned.

    Delta = Delta_0 + share * (Delta_1 - Delta_0),   Delta = B A

It is the product that is shared out. Scaling A and B apart by the same number would scale the product by its square,
and a mean of two A and a mean of two B are not the mean of their products. On the base model Delta_0 is 0, and scaling
B alone is exact. On a release the sum of two products has up to twice the rank: it becomes the nearest product of the
parent's own rank (singular values, Eckart and Young), because serving has a limit on ranks and a chain of nights must
not let them grow.

Shapes: A [r, in], B [out, r].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def share_of_change(parent: Mapping[str, Tensor], learned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """`parent` with `share` (0 to 1) of the way to `learned`; both hold matrices by their names in an adapter's file."""
    result: dict[str, Tensor] = {}
    for name_a in learned:
        if ".lora_A." not in name_a:
            continue
        name_b = name_a.replace(".lora_A.", ".lora_B.")
        if not parent[name_b].any():
            result[name_a], result[name_b] = learned[name_a].clone(), share * learned[name_b]
        else:
            out_b = torch.cat([(1 - share) * parent[name_b], share * learned[name_b]], dim=1)
            in_a = torch.cat([parent[name_a], learned[name_a]])
            result[name_a], result[name_b] = nearest_product(in_a, out_b, rank=len(learned[name_a]))
    return result


def nearest_product(a: Tensor, b: Tensor, *, rank: int) -> tuple[Tensor, Tensor]:
    """A and B of `rank` whose product B A is nearest to `b @ a`, without ever making that large matrix."""
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    root = s[:rank].sqrt()
    near_a = root[:, None] * (vh[:rank] @ q_a.T)
    near_b = (q_b @ u[:, :rank]) * root
    return near_a.to(a.dtype).contiguous(), near_b.to(b.dtype).contiguous()
