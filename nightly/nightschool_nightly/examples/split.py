"""Training and test set: which examples only test, and how many one user may have."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

from nightschool_nightly.examples.example import Example


def is_held_out(tenant: str, cluster: str, share: float) -> bool:
    """Whether the examples of a cluster only test.

    By a hash of the cluster alone, so that it is the same every night: an example of a user who was trained on never
    tests.
    """
    digest = hashlib.sha256(f"holdout/{tenant}/{cluster}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split(examples: Sequence[Example], *, tenant: str, holdout_share: float) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and those that only test."""
    train: list[Example] = []
    holdout: list[Example] = []
    for example in examples:
        (holdout if is_held_out(tenant, example.cluster, holdout_share) else train).append(example)
    return train, holdout


def cap_clusters(examples: Sequence[Example], share: float) -> list[Example]:
    """At most `share` of the examples from one cluster, the first by id, so that no busy user decides alone."""
    limit = max(1, math.ceil(share * len(examples)))
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for example in sorted(examples, key=lambda example: example.id):
        taken[example.cluster] += 1
        if taken[example.cluster] <= limit:
            kept.append(example)
    return kept
