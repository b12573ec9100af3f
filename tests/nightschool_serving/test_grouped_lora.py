"""The CPU LoRA operations against a reference that works row by row, and the place vLLM takes them from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from nightschool_serving.cpu_lora import GROUPED_WRAPPER
from nightschool_serving.grouped_lora import GroupedPunicaWrapper, apply_linear, expand, group_rows, shrink

SLOTS, HIDDEN, RANK, WIDTHS = 3, 12, 4, (10, 6)
MIXTURES = {
    "one adapter": [1, 1, 1, 1],
    "none": [-1, -1, -1],
    "two, together": [0, 0, 2, 2, 2],
    "two and base, interleaved": [0, -1, 2, 0, -1, 2, 0],
    "base first": [-1, -1, 1],
    "base last": [2, -1],
    "one row": [2],
}


def weights() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A and B as vLLM keeps them: [slots, 1, rows, columns] per output slice."""
    random = torch.Generator().manual_seed(0)
    a = [torch.randn(SLOTS, 1, RANK, HIDDEN, generator=random) for _ in WIDTHS]
    b = [torch.randn(SLOTS, 1, width, RANK, generator=random) for width in WIDTHS]
    return a, b


def reference(x: torch.Tensor, slots: list[int], y: torch.Tensor, scale: float) -> torch.Tensor:
    """y plus the adapter's output, row by row; a row without an adapter keeps y."""
    a, b = weights()
    y = y.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            y[row] += torch.cat([scale * (b_i[slot, 0] @ (a_i[slot, 0] @ x[row])) for a_i, b_i in zip(a, b, strict=True)])
    return y


@pytest.mark.parametrize("slots", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_every_row_gets_its_own_adapter_and_no_other(slots: list[int], scale: float) -> None:
    """Fused, and as shrink then expand; rows without an adapter keep their bits."""
    a, b = weights()
    x, y = torch.randn(len(slots), HIDDEN), torch.randn(len(slots), sum(WIDTHS))
    expected, groups = reference(x, slots, y, scale), group_rows(torch.tensor(slots))
    fused, stepwise = y.clone(), y.clone()
    apply_linear(x, a, b, WIDTHS, fused, groups, scale)
    start = 0
    for a_i, b_i, width in zip(a, b, WIDTHS, strict=True):
        hidden = torch.full((len(slots), RANK), 7.0)
        shrink(x, a_i, hidden, groups, scale)
        expand(hidden, b_i, stepwise[:, start : start + width], groups, add=True)
        start += width
    base = [row for row, slot in enumerate(slots) if slot < 0]
    for result in (fused, stepwise):
        torch.testing.assert_close(result, expected)
        assert torch.equal(result[base], y[base])


@pytest.mark.parametrize("slots", MIXTURES.values(), ids=MIXTURES)
def test_bf16_is_the_reference_rounded(slots: list[int]) -> None:
    """In the type that is served, within its precision; a wrong adapter would differ by the size of the values."""
    a, b = ([tensor.bfloat16() for tensor in side] for side in weights())
    x, y = torch.randn(len(slots), HIDDEN).bfloat16(), torch.randn(len(slots), sum(WIDTHS)).bfloat16()
    expected = reference(x.float(), slots, y.float(), 1.0)
    apply_linear(x, a, b, WIDTHS, y, group_rows(torch.tensor(slots)), 1.0)
    torch.testing.assert_close(y.float(), expected, atol=0.3, rtol=0.03)


def test_shrink_leaves_zeros_where_no_adapter_is() -> None:
    """Nothing is left of what the buffer held before."""
    out = torch.full((3, RANK), 7.0)
    shrink(torch.randn(3, HIDDEN), weights()[0][0], out, group_rows(torch.tensor([-1, 1, -1])), 1.0)
    assert torch.equal(out[[0, 2]], torch.zeros(2, RANK))
    assert out[1].abs().sum() > 0


@pytest.mark.parametrize("slots", [[0, -1, 2, 0], [1, 1, 1, 1]])
def test_expand_can_replace_instead_of_add(slots: list[int]) -> None:
    """Without `add` a row's old value is gone, except where no adapter is."""
    hidden, y = torch.randn(4, RANK), torch.randn(4, WIDTHS[0])
    b = weights()[1][0]
    out = y.clone()
    expand(hidden, b, out, group_rows(torch.tensor(slots)), add=False)
    for row, slot in enumerate(slots):
        torch.testing.assert_close(out[row], y[row] if slot < 0 else b[slot, 0] @ hidden[row])


def test_a_wider_vocabulary_in_the_model_is_left_alone() -> None:
    """The adapter's rows may be fewer than the model's padded output columns."""
    y = torch.zeros(2, WIDTHS[0] + 3)
    expand(torch.ones(2, RANK), weights()[1][0], y, group_rows(torch.tensor([0, 0])), add=True)
    assert torch.equal(y[:, WIDTHS[0] :], torch.zeros(2, 3))


def test_rows_that_lie_together_are_a_view() -> None:
    """No copy if an adapter's rows are neighbors; else the rows are listed."""
    together, scattered = group_rows(torch.tensor([-1, 1, 1, 0])), group_rows(torch.tensor([1, 0, 1]))
    assert [(group.slot, group.rows) for group in together] == [(0, slice(3, 4)), (1, slice(1, 3))]
    rows = scattered[1].rows
    assert isinstance(rows, torch.Tensor)
    assert rows.tolist() == [0, 2]


def wrapper_for(slots: list[int]) -> GroupedPunicaWrapper:
    """A wrapper that was told of one batch."""
    wrapper = GroupedPunicaWrapper(64, 64, "cpu", max_loras=SLOTS)
    tell(wrapper, slots)
    return wrapper


def tell(wrapper: GroupedPunicaWrapper, slots: list[int]) -> None:
    """The batch has changed, told the way vLLM does it: adapter ids 10, 11, 12 sit in slots 0, 1, 2."""
    from vllm.lora.layers import LoRAMapping

    ids = tuple(slot + 10 if slot >= 0 else 0 for slot in slots)
    wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill=False), [10, 11, 12], SLOTS + 1, 100)


@pytest.mark.parametrize("slots", MIXTURES.values(), ids=MIXTURES)
def test_vllms_linear_layers_get_the_same(slots: list[int]) -> None:
    """Through vLLM's own metadata, in one wrapper: before, and after the batch has changed, and changed back."""
    a, b = weights()
    wrapper, before = wrapper_for([2, 2, 0]), [2, 2, 0]
    for batch in (before, slots, before):
        tell(wrapper, batch)
        x, y = torch.randn(len(batch), HIDDEN), torch.randn(len(batch), sum(WIDTHS))
        expected = reference(x, batch, y, 1.0)
        wrapper.add_lora_linear(y, x, tuple(a), tuple(b), 1.0, WIDTHS)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("slots", [[0, -1, 2], [-1, -1], [1, 1]])
def test_logits_and_embeddings_keep_rows_apart_too(slots: list[int]) -> None:
    """The operations of lm_head and embedding adapters never touch a row without an adapter."""
    a, b = weights()
    wrapper = wrapper_for(slots)
    x, hidden = torch.randn(len(slots), HIDDEN), torch.randn(len(slots), RANK)
    logits, embedded = torch.randn(len(slots), WIDTHS[0]), torch.randn(len(slots), WIDTHS[0])
    expected_logits, expected_embedded = logits.clone(), embedded.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            expected_logits[row] += b[0][slot, 0] @ (a[0][slot, 0] @ x[row])
            expected_embedded[row] += b[0][slot, 0] @ hidden[row]
    wrapper.add_lora_logits(logits, x, a[0], b[0], 1.0)
    wrapper.add_lora_embedding(embedded, hidden, b[0])
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(embedded, expected_embedded)


Run = Callable[[str], str]


@pytest.fixture
def in_fresh_process() -> Run:
    """Runs code in a new interpreter with our plugin named in VLLM_PLUGINS, and returns what it printed."""

    def run(code: str) -> str:
        environment = {**os.environ, "VLLM_PLUGINS": "nightschool_cpu_lora", "VLLM_LOGGING_LEVEL": "ERROR"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
        return done.stdout.strip().splitlines()[-1]

    return run


@pytest.mark.vllm
def test_vllm_loads_the_plugin_and_builds_on_the_grouped_operations(in_fresh_process: Run) -> None:
    """Inactive before, active after, also when installed twice; vLLM's own selector then makes our wrapper."""
    printed = in_fresh_process(
        "import torch\n"
        "from nightschool_serving.cpu_lora import install, is_active\n"
        "before = is_active()\n"
        "from vllm.plugins import load_general_plugins\n"
        "load_general_plugins(); install()\n"
        "from vllm.lora.punica_wrapper import get_punica_wrapper\n"
        "kind = type(get_punica_wrapper(8, 8, torch.device('cpu'), max_loras=2))\n"
        "print(before, is_active(), f'{kind.__module__}.{kind.__qualname__}')"
    )
    assert printed == f"False True {GROUPED_WRAPPER}"
