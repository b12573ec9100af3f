"""Step 8 of a night: files the candidate as a release and points at it. Doing it twice changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from nightschool.errors import PointerConflict
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.release import ADAPTER_CONFIG, NIGHT, REPORT, WEIGHTS, ReleaseManifest, describe_file
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.gate.gate import Decision


def publish_release(
    registry: Registry, candidate: Path, manifest: NightManifest, decision: Decision, *, enter: Callable[[str], None]
) -> str:
    """File the adapter in the folder `candidate` and point at it; returns the release's digest.

    `enter(release)` puts the night into the ledger, before the pointer moves: no release serves whose night is not in
    it, for who trained it could not be told. A failure before the pointer moves leaves serving as it was.
    `PointerConflict` when the pointer is frozen, or when somebody moved it since the night began: the release stays
    filed, and a person decides.
    """
    config = json.loads((candidate / ADAPTER_CONFIG).read_text())

    def describe(engine_id: int) -> ReleaseManifest:
        return ReleaseManifest(
            tenant=manifest.tenant,
            engine_id=engine_id,
            base_model=manifest.base_model,
            dtype=manifest.dtype,
            rank=config["r"],
            alpha=config["lora_alpha"],
            target_modules=tuple(config["target_modules"]),
            files=tuple(describe_file(candidate / name) for name in (WEIGHTS, ADAPTER_CONFIG, REPORT, NIGHT)),
            night=manifest.digest,
            parent=manifest.parent,
            rubrics=manifest.rubrics,
            gate={"kl": decision.kl, "comparisons": [asdict(comparison) for comparison in decision.comparisons]},
            frozen_at_ms=manifest.frozen_at_ms,
        )

    release = registry.add(candidate, describe)
    enter(release)
    pointer = registry.pointer(manifest.tenant)
    if pointer.stable == release:
        return release  # this night was killed after it published
    filed = f"release {release[:12]} is filed, but the pointer of {manifest.tenant!r}"
    if has_moved(manifest.pointer, pointer):
        raise PointerConflict(f"{filed} was moved while the night ran, and stays as it is; start a new night without --resume")
    if pointer.frozen:
        raise PointerConflict(f"{filed} is frozen; unfreeze it and run --resume")
    # From the pointer as it is now: frozen and unfrozen again, it is at a later epoch than the night's.
    registry.move_pointer(manifest.tenant, pointer, stable=release, canary=None, weight=0)
    return release


def has_moved(before: Pointer, now: Pointer) -> bool:
    """Whether the pointer names other releases than before. Whether it is frozen is another question."""
    return (before.stable, before.canary, before.weight) != (now.stable, now.canary, now.weight)
