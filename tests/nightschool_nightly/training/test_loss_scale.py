"""The scales of a loss in fp16."""

from __future__ import annotations

import math

import pytest
import torch

from nightschool_nightly.training.loss_scale import loss_scales


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_types_with_the_range_of_fp32_need_none(dtype: torch.dtype) -> None:
    """One pass at a scale of 1."""
    assert list(loss_scales(dtype, 10_000)) == [1.0]


@pytest.mark.parametrize("total_tokens", [0, 1, 2, 3, 1000, 10_000])
def test_fp16_starts_at_the_number_of_tokens_and_ends_at_one(total_tokens: int) -> None:
    """Powers of two, each a quarter of the one before: nothing is rounded, and few passes reach 1."""
    scales = list(loss_scales(torch.float16, total_tokens))
    assert scales[0] <= max(1, total_tokens) < 2 * scales[0] or total_tokens == 0
    assert scales[-1] == 1.0 and scales == sorted(set(scales), reverse=True)
    assert all(math.log2(scale).is_integer() for scale in scales)
    assert len(scales) <= 2 + math.log(max(1, total_tokens), 4)
