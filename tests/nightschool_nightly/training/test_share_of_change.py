"""A share of tonight's change, by the products of the matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nightschool_nightly.training.share_of_change import nearest_product, share_of_change

RANK, IN, OUT = 4, 12, 20
A, B = "base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight"


def adapter(seed: int, *, zero: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(OUT, RANK, generator=generator)
    return {A: torch.randn(RANK, IN, generator=generator), B: torch.zeros_like(b) if zero else b}


def product(state: dict[str, Tensor]) -> Tensor:
    return state[B].double() @ state[A].double()


@pytest.mark.parametrize("share", [1.0, 0.75, 0.25, 0.0])
def test_on_the_base_model_the_product_is_scaled_once(share: float) -> None:
    """Half of the change is half of the product, not the quarter that scaling both matrices gives."""
    learned = adapter(1)
    found = share_of_change(adapter(0, zero=True), learned, share)
    torch.testing.assert_close(product(found), share * product(learned), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.75, 0.5, 0.35, 0.25])
def test_on_a_release_it_is_the_nearest_of_the_same_rank(share: float) -> None:
    """What is lost is exactly the smallest singular values of the mixed product, and the rank serving knows stays."""
    parent, learned = adapter(0), adapter(1)
    found = share_of_change(parent, learned, share)
    assert {name: tensor.shape for name, tensor in found.items()} == {name: tensor.shape for name, tensor in learned.items()}
    exact = (1 - share) * product(parent) + share * product(learned)
    lost = torch.linalg.matrix_norm(exact - product(found))
    assert float(lost) == pytest.approx(float(torch.linalg.svdvals(exact)[RANK:].norm()), rel=1e-4)


def test_a_small_change_of_a_release_is_kept_almost_whole() -> None:
    """A night moves its parent a little: the mixed product is near the parent's rank, and its share is nearly exact."""
    parent = adapter(0)
    learned = {name: tensor + 0.01 * other for (name, tensor), other in zip(parent.items(), adapter(1).values(), strict=True)}
    exact = 0.5 * product(parent) + 0.5 * product(learned)
    change = torch.linalg.matrix_norm(product(learned) - product(parent))
    assert float(torch.linalg.matrix_norm(exact - product(share_of_change(parent, learned, 0.5)))) < 0.01 * float(change)


def test_the_ends_are_the_parent_and_what_was_learned() -> None:
    """A share of 0 is the parent, one of 1 is what was learned."""
    parent, learned = adapter(0), adapter(1)
    for share, expected in ((0.0, parent), (1.0, learned)):
        torch.testing.assert_close(product(share_of_change(parent, learned, share)), product(expected), rtol=1e-4, atol=1e-4)


def test_a_product_of_that_rank_is_kept() -> None:
    """Nothing is lost where nothing must be."""
    state = adapter(3)
    a, b = nearest_product(torch.cat([state[A], state[A]]), torch.cat([0.3 * state[B], 0.7 * state[B]], dim=1), rank=RANK)
    torch.testing.assert_close(b.double() @ a.double(), product(state), rtol=1e-4, atol=1e-5)
