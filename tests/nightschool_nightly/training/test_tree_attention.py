"""Blocked attention over a tree against attention under the dense mask."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nightschool_nightly.training.tree import Sample, TokenTree, pack_tree
from nightschool_nightly.training.tree_attention import attend, plan_attention

SIZE = 4
token_rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


def tree_of(token_rows: Sequence[Sequence[int]]) -> TokenTree:
    return pack_tree([Sample(tuple(row), ()) for row in token_rows])


def dense(query_HLD: Tensor, key_GLD: Tensor, value_GLD: Tensor, mask_LL: Tensor, *, scaling: float) -> Tensor:
    """The definition: softmax(q k) v under the mask, head by head; [L, H, D]."""
    shared = len(query_HLD) // len(key_GLD)
    heads = []
    for number, query_LD in enumerate(query_HLD):
        scores_LL = (query_LD @ key_GLD[number // shared].T) * scaling
        heads.append(scores_LL.masked_fill(~mask_LL, -torch.inf).softmax(-1) @ value_GLD[number // shared])
    return torch.stack(heads, 1)


def inputs(num_rows: int, *, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    query, key, value = (torch.randn(n, num_rows, SIZE, generator=generator) for n in (heads, groups, groups))
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 2), (6, 1)])
@pytest.mark.parametrize("max_block", [0, 1, 3, 1000])
@settings(max_examples=20, deadline=None)
@given(token_rows=token_rows)
def test_blocks_give_the_numbers_of_the_dense_mask(
    token_rows: Sequence[Sequence[int]], max_block: int, heads: int, groups: int
) -> None:
    """Output and gradients are those of dense masked attention, however the tree is cut and the heads are shared."""
    tree = tree_of(token_rows)
    plan = plan_attention(tree.end_L, max_block=max_block)
    tensors = inputs(len(tree), heads=heads, groups=groups)
    found, expected = attend(*tensors, plan, scaling=0.3), dense(*tensors, tree.mask_LL(), scaling=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(torch.autograd.grad(found, tensors, pull), torch.autograd.grad(expected, tensors, pull), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_max_block_decides_what_stands_above_the_cuts() -> None:
    """Nothing fits a block of 0 rows, all fits one as large as the tree; in between the shared prompt stays above."""
    tree = tree_of([(1, 2, 3, 4), (1, 2, 5, 6)])
    assert plan_attention(tree.end_L, max_block=0).top_T.tolist() == [0, 1, 2, 3, 4, 5]
    assert plan_attention(tree.end_L, max_block=6).top_T.tolist() == []
    assert plan_attention(tree.end_L, max_block=2).top_T.tolist() == [0, 1]
    assert plan_attention(tree.end_L, max_block=2).rows_KR.tolist() == [[2, 3], [4, 5]]


def test_a_block_looks_at_its_own_path_only() -> None:
    """The keys of a block are its ancestors and itself: rows of branches that ended before it cost nothing."""
    plan = plan_attention(tree_of([(1, 2, 3, 4), (1, 5, 6, 7)]).end_L, max_block=2)
    assert plan.top_T.tolist() == [0, 1, 4]
    assert plan.keys_KC.tolist() == [[0, 1, 2, 3], [0, 4, 5, 6]]


def test_a_typical_batch_takes_a_part_of_the_dense_pairs() -> None:
    """With one system prompt, many messages and short answers, far fewer pairs are computed than a dense mask has."""
    system, batch = tuple(range(100, 140)), []
    for message in range(16):
        prompt = (*system, *(200 + message * 20 + n for n in range(20)))
        batch += [Sample(prompt, (9, answer, 8)) for answer in range(8)]
    tree = pack_tree(batch)
    assert plan_attention(tree.end_L).pairs < 0.25 * len(tree) ** 2
