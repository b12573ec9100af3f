"""A release as the engine of this server knows it: an adapter with a name, an id and a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nightschool.registry.release import check_digest
from nightschool.tenants import check_tenant


@dataclass(frozen=True, slots=True)
class Adapter:
    """A verified release on local disk."""

    tenant: str
    """As in the release's manifest."""
    release: str
    """Digest of the manifest."""
    id: int
    """vLLM's number of the adapter; no other weights ever have it."""
    folder: Path
    content: str
    """SHA-256 of what the engine reads; releases of equal content may share an id."""

    @property
    def name(self) -> str:
        """vLLM's name of the adapter."""
        return adapter_name(self.tenant, self.release)


def adapter_name(tenant: str, release: str) -> str:
    """The adapter's name inside vLLM: it never changes, because vLLM keys its prefix cache by name and path."""
    return f"t-{check_tenant(tenant)}.{check_digest(release)[:16]}"
