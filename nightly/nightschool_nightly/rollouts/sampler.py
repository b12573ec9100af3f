"""What is asked of a sampler and what it answers, and the seeds of a night's random choices.

Training and the gate know this interface only. `RolloutEngine` is the sampler of a night; tests have smaller ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SaveAdapter = Callable[[Path], None]
"""Writes an adapter into a folder, which it makes."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt to sample answers to."""

    prompt_ids: tuple[int, ...]
    num_samples: int
    max_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """Texts that end an answer, beside the end of turn."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """More parameters that change what is sampled, by their names in request bodies: those that serving accepts."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer."""

    token_ids: tuple[int, ...]
    """End of turn included, where the answer came to it."""
    logprobs: tuple[float, ...]
    """Of each token, in nats, under the distribution that was sampled from, temperature included."""
    text: str
    """The answer as a reader sees it, without special tokens."""
    finished: bool
    """False when the answer was cut at `max_tokens`."""


class Sampler(Protocol):
    """Samples answers from the base model with at most one adapter."""

    def use_adapter(self, save: SaveAdapter | None) -> None:
        """Answer with the adapter that `save` writes; None means the base model."""

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        """`num_samples` rollouts for each request, in order; none for a request that the engine refuses."""


def seed_of(*parts: str) -> int:
    """A seed of 31 bits out of names, the night's digest first: a night run again makes the same choices.

    The names are hashed as a JSON list, so that ("a", "bc") and ("ab", "c") have different seeds. 31 bits fit every
    library's type.
    """
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big") >> 1
