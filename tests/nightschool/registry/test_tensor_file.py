"""Reading safetensors files by hand agrees with the real library, and refuses what is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from nightschool.errors import ReleaseRejected
from nightschool.registry.tensors import check_tensors


def raw_file(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_names_and_shapes_are_those_of_the_real_library(tmp_path: Path, dtype: torch.dtype) -> None:
    """What safetensors writes, with metadata and tensors of several shapes, is read as it is."""
    tensors = {"b": torch.randn(3, 5).to(dtype), "a": torch.randn(7).to(dtype), "empty": torch.zeros(0, 4, dtype=dtype)}
    save_torch(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert {t.name: t.shape for t in check_tensors(tmp_path / "x.safetensors")} == {"b": (3, 5), "a": (7,), "empty": (0, 4)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found(tmp_path: Path, dtype: torch.dtype, number: float) -> None:
    """A single NaN or infinity anywhere in a tensor, of any type, is refused."""
    tensor = torch.zeros(5, 5, dtype=dtype)
    tensor[3, 2] = number
    save_torch({"fine": torch.ones(3, dtype=dtype), "bad": tensor}, tmp_path / "x.safetensors")
    with pytest.raises(ReleaseRejected, match="tensor 'bad' holds a number that is NaN"):
        check_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_number_a_matrix_may_hold_passes(tmp_path: Path, dtype: torch.dtype) -> None:
    """Large, tiny, negative and subnormal numbers are finite."""
    large = 65504.0 if dtype is torch.float16 else 1e38
    numbers = [0.0, -0.0, 1.0, -1.0, large, -large, torch.finfo(dtype).tiny, torch.finfo(dtype).smallest_normal / 2]
    save_torch({"x": torch.tensor(numbers, dtype=dtype)}, tmp_path / "x.safetensors")
    assert check_tensors(tmp_path / "x.safetensors")


def test_another_type_is_refused(tmp_path: Path) -> None:
    """Integers are not weights."""
    save_file({"x": np.zeros(3, np.int64)}, tmp_path / "x.safetensors")
    with pytest.raises(ReleaseRejected, match="dtype 'I64'; allowed are F32, BF16, F16"):
        check_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"", b"", "header of 0 bytes"),
        (b"{}", b"x", "holds 1 bytes of data, its header names 0"),
        (b"[]", b"", "not an object"),
        (b"{" * 1000, b"", "not JSON"),
        (b"[" * 200_000, b"", "not JSON"),
        (b"\xff\xff", b"", "not JSON"),
        ({"x": 3}, b"", "must have dtype, shape and data_offsets"),
        ({"x": {"dtype": "F32"}}, b"", "must have dtype, shape and data_offsets"),
        ({"x": entry(dtype=None)}, b"8 bytes.", "dtype None"),
        ({"x": entry(dtype=["F32"])}, b"8 bytes.", "dtype"),
        ({"x": entry(shape=None)}, b"8 bytes.", "has shape None"),
        ({"x": entry(shape=[-1, -2])}, b"8 bytes.", "has shape"),
        ({"x": entry(shape=[2.0])}, b"8 bytes.", "has shape"),
        ({"x": entry(shape=[True, 2])}, b"8 bytes.", "has shape"),
        ({"x": entry(offsets=[0, 8, 8])}, b"8 bytes.", "data_offsets"),
        ({"x": entry(offsets=[0, 4])}, b"8 bytes.", "has 4 bytes of F32"),
        ({"x": entry(offsets=[8, 16])}, b"8 bytes.", "begins at byte 8 of the data, expected 0"),
        ({"x": entry(), "y": entry()}, b"8 bytes.", "begins at byte 0 of the data, expected 8"),
        ({"x": entry()}, b"7 bytes", "holds 7 bytes of data, its header names 8"),
        ({"x": entry()}, b"9 bytes..", "holds 9 bytes of data, its header names 8"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    """Whenever header and data do not agree, a ReleaseRejected says where."""
    with pytest.raises(ReleaseRejected, match=said):
        check_tensors(raw_file(tmp_path / "x.safetensors", header, data))


def test_a_file_shorter_than_its_header_is_refused(tmp_path: Path) -> None:
    """A file cut inside its header, or before it, or one that claims a huge header."""
    for data in (b"", b"\x10", (1 << 40).to_bytes(8, "little"), (100).to_bytes(8, "little") + b"{"):
        (tmp_path / "x.safetensors").write_bytes(data)
        with pytest.raises(ReleaseRejected, match="header"):
            check_tensors(tmp_path / "x.safetensors")
