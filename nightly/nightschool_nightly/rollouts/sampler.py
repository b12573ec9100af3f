"""What is asked of a sampler, what it answers, and the seeds of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt to sample from."""

    prompt_ids: tuple[int, ...]
    num_samples: int
    max_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token under the sampling distribution, temperature included."""
    text: str
    finished: bool
    """False when the answer was cut at max_tokens."""


class Sampler(Protocol):
    """What training needs of `rollouts.RolloutEngine`."""

    def use(self, save: Callable[[Any], None] | None) -> None: ...

    def sample(self, asks: Sequence[Ask]) -> list[list[Rollout]]: ...


def seed_of(*parts: str) -> int:
    """A 31-bit seed out of names."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big") >> 1
