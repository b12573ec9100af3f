"""An adapter in a folder, under the names and in the format that vLLM and PEFT read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nightschool.errors import NightError
from nightschool.registry.release import ADAPTER_CONFIG, WEIGHTS


def matrix_name(layer: str, matrix: str) -> str:
    """PEFT's name for a matrix ("lora_A" or "lora_B") of a layer; `layer` is its full name in the model."""
    return f"base_model.model.{layer}.{matrix}.weight"


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], *, rank: int, alpha: int, targets: Sequence[str]) -> None:
    """Write weights and configuration; `NightError`, and no file, if a number in the weights is not finite."""
    folder.mkdir(parents=True, exist_ok=True)
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise NightError(
            f"{len(broken)} adapter matrices hold numbers that are not finite, first {broken[0]}; "
            "nothing was published; try a smaller [night] learning_rate"
        )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,  # the release's manifest names the base model, by its hashes
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
    }
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))
