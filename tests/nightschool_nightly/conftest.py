"""A tiny random model, policies on it, and examples: what the tests of the night share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nightschool.config.settings import NightConfig
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.release import NIGHT, REPORT, BaseModel
from nightschool_nightly.examples.example import Example
from nightschool_nightly.freeze.manifest import FrozenRange, NightManifest
from nightschool_nightly.gate.gate import Decision, compare
from nightschool_nightly.publish.publish import publish_release
from nightschool_nightly.training.policy import Policy
from tests.warm_python import WarmPython

VOCABULARY = 64


@pytest.fixture(scope="session")
def warm_python() -> Iterator[WarmPython]:
    """Runs `python -m` of nightly's modules without importing torch, transformers and DuckDB for each run again."""
    python = WarmPython(["transformers", "duckdb", "nightschool_nightly.doctor.checkup", "nightschool_nightly.night"])
    yield python
    python.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers, four heads and two key heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,  # the usual 0.02 makes every prediction nearly uniform, and errors invisible
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make_policy(tiny_model: Path) -> Callable[..., Policy]:
    """Makes a policy in fp32; `moved` gives its B matrices values, so that it is no longer the base model."""

    def make(*, rank: int = 8, moved: float = 0.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> Policy:
        policy = Policy(tiny_model, dtype=dtype, rank=rank, alpha=2 * rank, seed=seed)
        for parameter in policy.parameters.values():
            if moved and not parameter.any():
                parameter.data.normal_(0.0, moved)
        return policy

    return make


@pytest.fixture
def make_example() -> Callable[..., Example]:
    """Makes an example; what a test does not say has a plain value."""

    def make(name: str = "e1", **changes: object) -> Example:
        plain: dict[str, object] = {
            "id": name,
            "trace_id": f"trace-{name}",
            "task": "triage",
            "cluster": f"user-{name}",
            "message": f"message {name}",
            "prompt_ids": (1, 2, 3),
            "answer": "card",
            "references": {"queue": "fraud"},
            "demonstration": "fraud",
            "max_tokens": 4,
            "rollout_tokens": changes.get("max_tokens", 4),
            "temperature": 1.0,
            "top_p": 1.0,
            "stop": (),
            "others": {},
        }
        return Example(**{**plain, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_manifest() -> Callable[..., NightManifest]:
    """Makes the manifest of a night of tenant acme."""

    def make(**changes: object) -> NightManifest:
        plain: dict[str, object] = {
            "tenant": "acme",
            "ranges": (FrozenRange("ns.otlp_spans", "id-1", 0, 0, 0, 5), FrozenRange("ns.outcomes", "id-2", 0, 0, 0, 3)),
            "settings": {"seed": NightConfig().seed, "steps": 2},
            "dtype": "float32",
            "base_model": BaseModel("a" * 64, "b" * 64, "c" * 64),
            "rubrics": {"triage": "e" * 64},
            "pointer": Pointer(),
            "frozen_at_ms": 1_760_000_000_000,
        }
        return NightManifest(**{**plain, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def file_release(
    tmp_path: Path, make_policy: Callable[..., Policy], make_manifest: Callable[..., NightManifest]
) -> Callable[..., str]:
    """Publishes a release of the tiny model into a registry; keywords are fields of its night's manifest."""
    users = [f"u{n}" for n in range(10)]
    gain = Decision(True, (), (compare("base", [0.0] * 10, [1.0] * 10, users, confidence=0.95, seed=0),), kl=0.0)

    def publish(registry: Registry, **changes: object) -> str:
        folder, manifest = tmp_path / "filed", make_manifest(**changes)
        make_policy(moved=0.2).save(folder)
        (folder / REPORT).write_text("<p>better</p>")
        (folder / NIGHT).write_text(manifest.to_json())
        return publish_release(registry, folder, manifest, gain, enter=print)

    return publish
