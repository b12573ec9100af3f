"""By what a loss is multiplied before the backward pass in fp16, and its gradient divided after it.

fp16 has nothing below 6e-8 and nothing above 65,504. The loss is a mean over thousands of tokens, so the gradient of
one logit is often below that and would be lost without a word. Multiplied by the number of tokens the loss is a sum,
and the gradient of a token has the size it has alone. Where that overflows somewhere, the pass is done again at a
quarter. The scale is a power of two, so it rounds nothing, and nothing is carried from step to step: a resumed night
takes the same scales.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def loss_scales(dtype: torch.dtype, total_tokens: int) -> Iterator[float]:
    """The scales to try in turn for a step of so many tokens. bf16 and fp32 have fp32's range and need none."""
    scale = 1.0
    while dtype is torch.float16 and 2 * scale <= total_tokens:
        scale *= 2
    while scale > 1:
        yield scale
        scale = max(1.0, scale / 4)
    yield 1.0
