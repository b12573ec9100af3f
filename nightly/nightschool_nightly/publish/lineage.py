"""Which users a release learned from: a list of marks in its night.json, from which no pseudonym can be read.

A mark is a hash over the night and the subject's erasure hash. So marks of two nights, or of two tenants, cannot be
matched with each other, and yet a person who knows the subject can ask each release about them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from nightschool.erasure import hash_subject
from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.freeze.manifest import NightManifest

_DIGITS = 16  # 64 bits: of a million users, two share a mark with a chance of 3 in 100 million


def mark_of(night: str, subject_hash: str) -> str:
    """The mark that a subject leaves in night `night` (its digest)."""
    return hashlib.sha256(f"lineage/{night}/{subject_hash}".encode()).hexdigest()[:_DIGITS]


def with_lineage(manifest: NightManifest, selection: Selection) -> NightManifest:
    """The manifest as its release carries it: with the marks of the users it learned from and was tested with.

    Every prompt of `selection.train` was sampled by some step: who is in it was learned from.

    Its digest stays the same, because marks are not part of it.
    """

    def marks(examples: Iterable[Example]) -> tuple[str, ...]:
        return tuple(sorted({mark_of(manifest.digest, hash_subject(manifest.tenant, example.cluster)) for example in examples}))

    return replace(manifest, learned_from=marks(selection.train), tested_with=marks(selection.holdout))
