"""What a night that ended leaves in the ledger: how far it has read and, where it filed a release, what that is made of."""

from __future__ import annotations

from dataclasses import replace

from nightschool.errors import NightError
from nightschool.registry.folder import Registry
from nightschool.registry.ledger import LedgerEntry
from nightschool_nightly.examples.example import Selection
from nightschool_nightly.examples.learned import hash_cluster, hash_evidence, hash_prompt
from nightschool_nightly.freeze.freeze import entry_of
from nightschool_nightly.freeze.manifest import NightManifest


def ledger_entry(manifest: NightManifest, selection: Selection, *, end: str, release: str | None) -> LedgerEntry:
    """The entry of a night; every prompt that its selection trains with was sampled by some step."""
    entry = replace(entry_of(manifest, end=end, release=release), num_left=selection.num_left)
    if release is None:
        return entry
    tenant, train, holdout = manifest.tenant, selection.train, selection.holdout
    return replace(
        entry,
        examples=tuple(sorted({hash_evidence(example.id, example.references) for example in (*train, *holdout)})),
        prompts=tuple(sorted({hash_prompt(tenant, example) for example in train})),
        trained=tuple(sorted({hash_cluster(tenant, example.cluster) for example in train})),
        tested=tuple(sorted({hash_cluster(tenant, example.cluster) for example in holdout})),
    )


def enter_night(registry: Registry, manifest: NightManifest, selection: Selection, *, end: str, release: str | None) -> None:
    """Put the night into its tenant's ledger, once; `RegistryError` when another night ended since it began."""
    registry.ledger(manifest.tenant).add(ledger_entry(manifest, selection, end=end, release=release))


def has_left_over(registry: Registry, manifest: NightManifest) -> bool:
    """Whether the last night left prompts that no step sampled, and published what it made of the others.

    Without anything new, a night after one that published nothing would only try the gate again with another seed.
    """
    nights = registry.ledger(manifest.tenant).up_to(manifest.ledger)
    return bool(nights and nights[-1].release and nights[-1].release == manifest.pointer.stable and nights[-1].num_left)


def refuse_overtaken(registry: Registry, manifest: NightManifest) -> None:
    """`NightError` when another night of the tenant ended after this one was frozen: it read the same records."""
    nights = registry.ledger(manifest.tenant).entries()
    if nights and manifest.ledger != nights[-1].digest and manifest.digest != nights[-1].night:
        raise NightError(
            f"night {nights[-1].night[:12]} ended after night {manifest.digest[:12]} was frozen; start a new night without --resume"
        )
