"""The output layer over the rows of a tree, a bounded number of rows at a time.

Logits are a step's largest tensor: 4,096 rows over a vocabulary of 152,000 tokens are 2.5 GB in fp32, and the backward
pass wants several of that size. So they are made for a few rows at a time. With more than one part each is computed
again in the backward pass: a third more work in this layer only, and memory that does not grow with the batch.

What makes logits of hidden states is more than one matrix: Granite divides by a constant, Gemma 2 caps. So the model's
own forward pass does it, with its layers left out.

Shapes: P rows that predict something, H hidden size, V vocabulary, E edges (a row and the token that follows it).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_MAX_LOGITS = 2**25  # of one part: 134 MB in fp32, 682 rows over the 49,152 tokens of a small model


def rows_at_a_time(vocabulary: int, *, max_logits: int = _MAX_LOGITS) -> int:
    """How many rows' logits are held at once."""
    return max(1, max_logits // vocabulary)


class _PassThrough(nn.Module):
    """Stands in for the layers of a model: what goes in as embeddings comes out as last hidden states."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)  # the widest of such outputs; the rest is None


def output_layer(model: Any) -> Callable[[Tensor], Tensor]:
    """What the transformers model `model` makes of last hidden states: [P, H] to logits [P, V]."""
    shell = copy.copy(model)
    shell._modules = {**model._modules, model.base_model_prefix: _PassThrough()}

    def logits_of(hidden_PH: Tensor) -> Tensor:
        logits_PV: Tensor = shell(inputs_embeds=hidden_PH[None], use_cache=False).logits[0]
        return logits_PV

    return logits_of


def edge_logprobs(
    logits_of: Callable[[Tensor], Tensor],
    hidden_PH: Tensor,
    row_E: Tensor,
    token_E: Tensor,
    *,
    temperature: float,
    num_rows: int,
) -> tuple[Tensor, Tensor]:
    """Log-probability of every edge [E], with gradient to `hidden_PH`, and the entropy at its row [E]; in nats.

    `logits_of` makes fp32 logits [rows, V] of hidden states; `num_rows` of them are held at a time.
    """

    def part(hidden_RH: Tensor, row_e: Tensor, token_e: Tensor) -> tuple[Tensor, Tensor]:
        return _logprobs(logits_of(hidden_RH), row_e, token_e, temperature=temperature)

    if len(hidden_PH) <= num_rows:
        return part(hidden_PH, row_E, token_E)
    # Edges in the order of their rows, so that those of one part stand together.
    order_E = torch.argsort(row_E, stable=True)
    sorted_row_E, sorted_token_E = row_E[order_E], token_E[order_E]
    pieces = []
    for first in range(0, len(hidden_PH), num_rows):
        bounds = torch.tensor([first, first + num_rows], device=row_E.device)
        low, high = torch.searchsorted(sorted_row_E, bounds).tolist()
        rows_e, tokens_e = sorted_row_E[low:high] - first, sorted_token_E[low:high]
        pieces.append(checkpoint(part, hidden_PH[first : first + num_rows], rows_e, tokens_e, use_reentrant=False))
    back_E = torch.argsort(order_E)
    return torch.cat([logprobs for logprobs, _ in pieces])[back_E], torch.cat([entropy for _, entropy in pieces])[back_E]


def _logprobs(logits_PV: Tensor, row_E: Tensor, token_E: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    if temperature != 1.0:
        logits_PV = logits_PV / temperature
    normalizer_P = torch.logsumexp(logits_PV, dim=-1)
    # log softmax(x)[t] = x[t] - logsumexp(x), only at the tokens that are needed and not for all of [P, V].
    logprobs_E = logits_PV[row_E, token_E] - normalizer_P[row_E]
    with torch.no_grad():
        # Entropy = logsumexp(x) - sum_v p_v x_v. In place, because [P, V] is the largest tensor of a step.
        weighted_PV = torch.exp_(logits_PV - normalizer_P[:, None]).mul_(logits_PV)
        entropy_E = (normalizer_P - weighted_PV.sum(-1))[row_E]
    return logprobs_E, entropy_E
