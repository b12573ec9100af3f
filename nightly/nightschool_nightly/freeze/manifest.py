"""The manifest of a night: everything that decides what it does, frozen before anything is trained.

The same manifest gives the same batch, byte for byte. Its digest names the night's folder and goes into the release.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nightschool import semconv
from nightschool.errors import NightError, RegistryError
from nightschool.registry.folder import Pointer
from nightschool.registry.release import BaseModel

FILE = "night.json"
_NOT_COVERED = {"frozen_at_ms", "pseudonyms", "learned_from", "tested_with", "threads", "kv_cache_bytes"}
# In the digest only where they are set: without them a night has the digest that it had before there were such fields.
_COVERED_IF_SET = {
    "settles_after_ms",
    "as_of_ms",
    "previous_as_of_ms",
    "redaction",
    "serving",
    "ledger",
    "previous_frozen_ms",
    "starts_over",
}


@dataclass(frozen=True, slots=True)
class FrozenRange:
    """The records of one partition that a night reads, and where the new ones start."""

    topic: str
    topic_id: str
    partition: int
    start: int
    """First offset read. Older records are read too: new outcomes may be about older episodes."""
    new_from: int
    """Records from here on are new: no night that ended has read them."""
    end: int
    """One past the last offset read."""


@dataclass(frozen=True, slots=True)
class NightManifest:
    """The frozen input of one tenant's night."""

    tenant: str
    ranges: tuple[FrozenRange, ...]
    settings: Mapping[str, Any]
    """[night] as configured, without folders."""
    dtype: str
    """Type of the base weights: the one of [model] dtype, or what 'auto' chose on this machine."""
    base_model: BaseModel
    rubrics: Mapping[str, str]
    """Rubric digest by task."""
    pointer: Pointer
    """The tenant's pointer when the night began; `pointer.stable` is the release that serves."""
    frozen_at_ms: int
    """When the input was frozen: the only time that a clock is read. Not part of the digest."""
    schema: int = 1
    settles_after_ms: Mapping[str, int] = field(default_factory=dict)
    """Milliseconds that the newest record of an outcome name must stand to count; a name not listed settles at once."""
    as_of_ms: int = 0
    """The time by which outcomes must have settled: `frozen_at_ms` down to the hour; 0 when none is waited for."""
    previous_as_of_ms: int = 0
    """The same of the last night that ended: what has settled since then is new to this one."""
    redaction: str = ""
    """Digest of the rules and secret by which records of other collectors are redacted when read; empty for none."""
    serving: Mapping[str, Any] = field(default_factory=dict)
    """What serving fills in where a request says nothing (`ServingDefaults`): its limits, the model's own defaults."""
    ledger: str = ""
    """Digest of the newest entry of the tenant's ledger: what was read and learned before; empty for a first night."""
    previous_frozen_ms: int = 0
    """When the last night that ended froze its input; 0 for a first night."""
    pseudonyms: tuple[str, ...] = ()
    """Digests of the secrets behind the tenant's pseudonyms: when they change, users cannot be told to be the same."""
    starts_over: bool = False
    """Whether it learns on top of the base model although a release serves: who trained that release cannot be told."""
    learned_from: tuple[str, ...] = ()
    """Marks of the users that the candidate was trained on (`publish.lineage`); empty until the night is over."""
    threads: int = 0
    """Compute threads on a CPU, also when the night is resumed: sums are rounded by how many threads share them. 0 in
    manifests that are older than the field. Not part of the digest: on another machine it is the same night."""
    kv_cache_bytes: int = 0
    """Size of vLLM's KV cache on a CPU: it decides which answers are sampled in one batch. 0 and the digest as above."""
    tested_with: tuple[str, ...] = ()
    """Marks of the users it was tested with."""

    @property
    def digest(self) -> str:
        """SHA-256 that names the night. Not of `frozen_at_ms`, the machine and the marks: the same input is the same night."""
        content = {
            key: value for key, value in asdict(self).items() if key not in _NOT_COVERED and (value or key not in _COVERED_IF_SET)
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def parent(self) -> str | None:
        """The release that it learns on top of; None for the base model."""
        return None if self.starts_over else self.pointer.stable

    @property
    def has_new_records(self) -> bool:
        """Whether there is new evidence: records, or outcomes that may have settled. An erasure is no evidence."""
        return self.as_of_ms > self.previous_as_of_ms > 0 or any(
            part.end > part.new_from for part in self.ranges if part.topic != semconv.TOPIC_ERASURE
        )

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "digest": self.digest}, sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> NightManifest:
        """Read back a manifest; `NightError` when it was altered."""
        try:
            raw = json.loads(text)
            digest = raw.pop("digest")
            if "learnt_from" in raw:  # as manifests called it before 2026-11
                raw["learned_from"] = raw.pop("learnt_from")
            raw["ranges"] = tuple(FrozenRange(**part) for part in raw["ranges"])
            raw |= {name: tuple(raw.get(name, ())) for name in ("pseudonyms", "learned_from", "tested_with")}
            raw["base_model"], raw["pointer"] = BaseModel(**raw["base_model"]), Pointer(**raw["pointer"])
            manifest = cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError, RegistryError) as error:
            raise NightError(f"night.json cannot be read ({error}); start a new night without --resume") from None
        if manifest.digest != digest:
            raise NightError("night.json does not match its own digest: it was altered; start a new night without --resume")
        return manifest
