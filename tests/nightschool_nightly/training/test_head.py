"""The output layer in parts against all of it at once."""

from __future__ import annotations

import pytest
import torch

from nightschool_nightly.training.head import edge_logprobs, rows_at_a_time

P, H, V = 11, 6, 40


@pytest.mark.parametrize("num_rows", [1, 4, 5, 10, 11, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_parts_give_the_numbers_of_the_whole(num_rows: int, temperature: float) -> None:
    """Values and gradient of the log-probabilities, and the entropies, do not depend on how many rows are held at once."""
    generator = torch.Generator().manual_seed(0)
    head_VH, hidden_PH = torch.randn(V, H, generator=generator), torch.randn(P, H, generator=generator).requires_grad_()
    # Not in the order of rows, several edges of one row, and one row without any.
    row_E = torch.tensor([3, 0, 10, 3, 7, 1, 2, 4, 5, 8, 9, 0])
    token_E = torch.arange(len(row_E)) * 3
    pull_E = torch.randn(len(row_E), generator=generator)
    found = edge_logprobs(lambda x: x @ head_VH.T, hidden_PH, row_E, token_E, temperature=temperature, num_rows=num_rows)
    logprob_PV = (hidden_PH @ head_VH.T / temperature).log_softmax(-1)
    expected_E, entropy_P = logprob_PV[row_E, token_E], -(logprob_PV.exp() * logprob_PV).sum(-1)
    torch.testing.assert_close(found[0], expected_E)
    torch.testing.assert_close(found[1], entropy_P[row_E].detach())
    torch.testing.assert_close(
        torch.autograd.grad(found[0], hidden_PH, pull_E)[0], torch.autograd.grad(expected_E, hidden_PH, pull_E)[0]
    )


def test_the_larger_the_vocabulary_the_fewer_rows() -> None:
    """What is held at once is bounded in numbers, not in rows; one row always is."""
    assert rows_at_a_time(49_152) == 682 and rows_at_a_time(152_000) == 220
    assert rows_at_a_time(1000, max_logits=10) == 1
