"""What the release that a night goes on from was made of, out of the ledger; and the hashes by which it is known there.

A night does not sample twice what its release has learned from or was tested with, and nobody who trained tests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from nightschool.erasure import hash_subject
from nightschool.registry.ledger import LedgerEntry, in_lineage
from nightschool_nightly.examples.example import Example

_DIGITS = 32  # 128 bits: no two of a tenant's prompts or users ever share one


@dataclass(frozen=True, slots=True)
class Learned:
    """What the nights sampled that made a release and those it is built on."""

    examples: frozenset[str] = frozenset()
    """`hash_evidence` of each example that trained or tested."""
    ids: frozenset[str] = frozenset()
    """`hash_id` of each of them."""
    prompts: frozenset[str] = frozenset()
    """`hash_prompt` of each example that trained."""
    clusters: frozenset[str] = frozenset()
    """`hash_cluster` of each example that trained."""

    @classmethod
    def by(cls, entries: Sequence[LedgerEntry], release: str | None) -> Self:
        """What made `release`; nothing for the base model."""
        nights = in_lineage(entries, release)
        examples = frozenset(one for night in nights for one in night.examples)
        return cls(
            examples,
            frozenset(one[: _DIGITS // 2] for one in examples),
            frozenset(one for night in nights for one in night.prompts),
            frozenset(one for night in nights for one in night.trained),
        )


NOTHING_LEARNED = Learned()
"""What the base model has learned from a tenant."""


def hash_evidence(example_id: str, references: Mapping[str, str]) -> str:
    """The hash of an example, and of what is known of its right answer: corrected, it is news again."""
    return hash_id(example_id) + _hash("references", sorted(references.items()))[: _DIGITS // 2]


def hash_id(example_id: str) -> str:
    """The hash of an example, whatever is known of its right answer: the first half of `hash_evidence`."""
    return _hash("example", example_id)[: _DIGITS // 2]


def hash_prompt(tenant: str, example: Example) -> str:
    """The hash of a prompt and its task."""
    return _hash("prompt", tenant, example.task, example.prompt_ids)


def hash_cluster(tenant: str, cluster: str) -> str:
    """The hash of a user, as an erasure holds it: who knows the subject can find it in the ledger."""
    return hash_subject(tenant, cluster)[:_DIGITS]


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:_DIGITS]
