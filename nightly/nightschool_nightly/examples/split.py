"""Which users only test, and how much one of them counts."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict

from nightschool_nightly.examples.example import Drop, Example


def is_held_out(tenant: str, user: str, share: float) -> bool:
    """Whether a user only tests. By a hash of the user alone, so that it is the same every night: nobody trained on ever tests."""
    digest = hashlib.sha256(f"holdout/{tenant}/{user}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def cap_users(examples: list[Example], share: float, dropped: Counter[str]) -> list[Example]:
    """Keep at most `share` of the examples from one user, the first by id."""
    limit = max(1, math.ceil(share * len(examples)))
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for example in sorted(examples, key=lambda example: example.id):
        taken[example.user] += 1
        if taken[example.user] <= limit:
            kept.append(example)
        else:
            dropped[Drop.USER_SHARE] += 1
    return kept
