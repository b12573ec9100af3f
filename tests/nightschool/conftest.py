"""Adapters to file: real safetensors files of one tiny module, written by the real library."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from nightschool.registry.release import ADAPTER_CONFIG, MANIFEST, REPORT, WEIGHTS, BaseModel, ReleaseManifest, describe_file

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


class Adapters:
    """Makes adapters in a folder of the test, and their manifests."""

    base_model = BaseModel(weights="a" * 64, tokenizer="b" * 64, chat_template="c" * 64)

    def __init__(self, root: Path) -> None:
        self.root = root

    def tensors(self, *, rank: int = 8, seed: int = 0) -> dict[str, Any]:
        """lora_A [rank, 24] and lora_B [16, rank] of one module."""
        random = np.random.default_rng(seed)
        return {
            f"{MODULE}.lora_A.weight": random.standard_normal((rank, 24), dtype=np.float32),
            f"{MODULE}.lora_B.weight": random.standard_normal((16, rank), dtype=np.float32),
        }

    def source(self, name: str = "source", *, seed: int = 0, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
        """A folder as a night writes it: weights, adapter configuration, report."""
        folder = self.root / name
        folder.mkdir()
        save_file(self.tensors(seed=seed) if tensors is None else tensors, folder / WEIGHTS)
        plain = {"peft_type": "LORA", "bias": "none", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "use_dora": False}
        (folder / ADAPTER_CONFIG).write_text(json.dumps(plain | config))
        (folder / REPORT).write_text("<p>better</p>")
        return folder

    def manifest(self, source: Path, *, engine_id: int = 1000, **changes: Any) -> ReleaseManifest:
        """The manifest of everything in `source`, as tenant acme's."""
        manifest = ReleaseManifest(
            tenant="acme",
            engine_id=engine_id,
            base_model=self.base_model,
            dtype="float32",
            rank=8,
            alpha=16,
            target_modules=("q_proj",),
            files=tuple(describe_file(path) for path in sorted(source.iterdir())),
            night="d" * 64,
            parent=None,
            rubrics={"triage": "e" * 64},
            gate={"lower_bound": 0.125, "note": "naïve"},
            frozen_at_ms=1_760_000_000_000,
        )
        return replace(manifest, **changes)

    def sealed(self, source: Path, **changes: Any) -> tuple[Path, str]:
        """`source` with a manifest that fits it, as anybody who can write to the registry can make, and its digest."""
        return source, self.seal(source, self.manifest(source, **changes).to_bytes())

    def seal(self, source: Path, manifest: bytes) -> str:
        (source / MANIFEST).write_bytes(manifest)
        return hashlib.sha256(manifest).hexdigest()


@pytest.fixture
def adapters(tmp_path: Path) -> Adapters:
    root = tmp_path / "adapters"
    root.mkdir()
    return Adapters(root)
