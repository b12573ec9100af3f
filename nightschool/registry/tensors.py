"""Reads a safetensors file with the standard library alone: names, shapes, and whether every number is finite.

That is enough to refuse a bad adapter in any process, without torch and without loading it. The format is 8 bytes of
header length, a JSON header of name -> {dtype, shape, data_offsets}, and then the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nightschool.errors import ReleaseRejected, shown

_MAX_HEADER_BYTES = 16 << 20  # far more than an adapter's header has, and little enough to parse
# Bytes of a number, and the smallest top byte (without the sign) of a number that is refused: infinite, NaN or, for the
# two wide types, above 2**127, because the top byte holds only 7 bits of the exponent. No LoRA matrix has such a
# number.
_NUMBERS = {"F32": (4, 0x7F), "BF16": (2, 0x7F), "F16": (2, 0x7C)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """First byte of its data, counted from the end of the header."""
    end: int
    """One past the last byte."""


def check_tensors(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file, in order of their data; `ReleaseRejected` says what is wrong with it.

    Every type is a known one, the data of all tensors fills the file without gaps, and every number is finite.
    """
    header, start = _read_header(path)
    tensors = sorted((_tensor(name, entry) for name, entry in header.items()), key=lambda tensor: (tensor.begin, tensor.end))
    _check_extent(path, tensors, start)
    _check_finite(path, tensors, start)
    return tensors


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header without its metadata, and where the data starts."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= _MAX_HEADER_BYTES:
            raise ReleaseRejected(f"{path.name} has a safetensors header of {size} bytes; allowed are 2 to {_MAX_HEADER_BYTES}")
        try:
            header = json.loads(file.read(size))
        except (ValueError, RecursionError) as error:
            raise ReleaseRejected(f"{path.name} has a safetensors header that is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ReleaseRejected(f"{path.name} has a safetensors header that is not an object")
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, 8 + size


def _tensor(name: str, entry: Any) -> Tensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ReleaseRejected(f"tensor {shown(name)} is described by {shown(entry)}; it must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _NUMBERS:
        raise ReleaseRejected(f"tensor {shown(name)} has dtype {shown(dtype)}; allowed are {', '.join(_NUMBERS)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ReleaseRejected(f"tensor {shown(name)} has shape {shown(shape)} and data_offsets {shown(offsets)}")
    if offsets[1] - offsets[0] != prod(shape) * _NUMBERS[dtype][0]:
        raise ReleaseRejected(f"tensor {shown(name)} of shape {shown(shape)} has {offsets[1] - offsets[0]} bytes of {dtype}")
    return Tensor(name, dtype, tuple(shape), offsets[0], offsets[1])


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def _check_extent(path: Path, tensors: Sequence[Tensor], start: int) -> None:
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            raise ReleaseRejected(f"tensor {shown(tensor.name)} begins at byte {tensor.begin} of the data, expected {end}")
        end = tensor.end
    if (held := path.stat().st_size - start) != end:
        raise ReleaseRejected(f"{path.name} holds {held} bytes of data, its header names {end}")


def _check_finite(path: Path, tensors: Sequence[Tensor], start: int) -> None:
    with path.open("rb") as file:
        file.seek(start)
        for tensor in tensors:
            width, limit = _NUMBERS[tensor.dtype]
            top_bytes = file.read(tensor.end - tensor.begin)[width - 1 :: width]
            too_large = bytes(byte & 0x7F >= limit for byte in range(256))
            if 1 in top_bytes.translate(too_large):
                raise ReleaseRejected(f"tensor {shown(tensor.name)} holds a number that is NaN, infinite or above 2**127")
