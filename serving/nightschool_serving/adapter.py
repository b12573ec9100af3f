"""A release as the engine of this server knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nightschool.registry.release import check_digest
from nightschool.tenants import check_tenant


@dataclass(frozen=True, slots=True)
class Adapter:
    """A verified release on local disk, as the engine knows it."""

    tenant: str
    """As in the release's manifest."""
    digest: str
    adapter_id: int
    folder: Path
    content: str
    """SHA-256 of what the engine reads; releases of equal content may share an id."""

    @property
    def name(self) -> str:
        return adapter_name(self.tenant, self.digest)


def adapter_name(tenant: str, digest: str) -> str:
    """The adapter's name inside vLLM: immutable, because vLLM keys its prefix cache by name and path."""
    return f"t-{check_tenant(tenant)}.{check_digest(digest)[:16]}"
