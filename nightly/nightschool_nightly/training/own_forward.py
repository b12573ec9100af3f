"""Whether a model over a token tree predicts what its own forward pass predicts, looked at once when it is loaded.

Attention is told who sees whom. Other layers that look at neighbors are not: a convolution or a recurrent state (LFM2,
Mamba) runs through the packed rows as if they were one text, and nothing raises. So before a night spends anything,
a small tree and its sequences one by one go through the model, and the predictions are compared.

Shapes: V vocabulary, N completion tokens of the small tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nightschool.errors import NightError
from nightschool_nightly.training import tree_attention
from nightschool_nightly.training.tree import Sample, TokenTree, pack_tree

# Total variation distance between the two predictions, half the sum of |p - q| over the vocabulary, 0 to 1: the mean
# over the tokens of the sequence where it is largest. Tiny random models of nine architectures are below 0.03 in bf16
# and 0.005 in fp16, SmolLM2-135M in bf16 at 0.00, LFM2 with its convolutions above 0.2.
_LIMIT = 0.1


def check_own_forward(model: Any, tree_logits: Callable[[TokenTree], Tensor]) -> None:
    """`NightError` unless `tree_logits` of a small tree are what `model` gives its sequences one by one."""
    samples = _small_samples(model.get_output_embeddings().weight.shape[0])
    tree = pack_tree(samples)
    with torch.no_grad():
        over_tree_NV = tree_logits(tree)[tree.edge_row_E[tree.edges_N]].softmax(-1)
        model.set_attn_implementation("eager")
        try:
            own_NV = torch.cat([_own_logits(model, sample) for sample in samples]).softmax(-1)
        finally:
            model.set_attn_implementation(tree_attention.NAME)
        distances_N = (over_tree_NV - own_NV).abs().sum(-1) / 2
        distance = float(torch.stack([part.mean() for part in torch.split(distances_N, list(tree.lengths))]).max())
    if not distance <= _LIMIT:  # NaN is refused too
        raise NightError(
            f"over a token tree the model type {model.config.model_type!r} predicts something else than in its own forward "
            f"pass (total variation {distance:.3f}, allowed is {_LIMIT}): it has layers, such as convolutions or recurrent "
            "states, that training does not know; nothing was published; name a base model of another type in [model] path"
        )


def _small_samples(vocabulary: int) -> list[Sample]:
    """Three sequences that share a beginning, and one of its own; their tokens are spread over the vocabulary."""
    ids = [(number * 7919 + 13) % vocabulary for number in range(48)]
    shared = tuple(ids[:8])
    return [
        Sample(shared, tuple(ids[8:14])),
        Sample(shared, (*ids[8:10], *ids[14:18])),
        Sample((*shared, ids[18]), tuple(ids[19:25])),
        Sample(tuple(ids[25:29]), tuple(ids[29:35])),
    ]


def _own_logits(model: Any, sample: Sample) -> Tensor:
    ids_BL = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]], device=model.device)
    logits_LV: Tensor = model(ids_BL, use_cache=False).logits[0]
    return logits_LV[len(sample.prompt_ids) - 1 : -1].float()
