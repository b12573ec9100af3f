"""What the configuration says about browser tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nightschool.config.settings import DEFAULT_OUTCOMES, Config, OutcomeConfig
from nightschool.errors import ConfigError
from nightschool.outcomes.tokens import OutcomeKey, load_key


@dataclass(frozen=True, slots=True)
class BrowserSettings:
    """What the configuration says of browser tokens."""

    keys: Mapping[str, Sequence[OutcomeKey]] = field(default_factory=dict)
    revoked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    origins: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rules: Mapping[str, OutcomeConfig] = field(default_factory=lambda: DEFAULT_OUTCOMES)
    writes_per_minute: int = 60

    @classmethod
    def of(cls, config: Config) -> BrowserSettings:
        """Reads the secrets; `ConfigError` for one that is missing or too short."""
        tenants = config.tenants
        return cls(
            keys={name: _load_keys(name, tenant.outcome_keys) for name, tenant in tenants.items()},
            revoked={name: tenant.revoked_tokens for name, tenant in tenants.items()},
            origins={name: tenant.outcome_origins for name, tenant in tenants.items()},
            rules=config.outcomes,
            writes_per_minute=config.collector.browser_writes_per_minute,
        )


def _load_keys(tenant: str, sources: Sequence[str]) -> list[OutcomeKey]:
    keys = [load_key(source) for source in sources]
    kids = [key.kid for key in keys]
    if doubled := sorted({kid for kid in kids if kids.count(kid) > 1}):
        raise ConfigError(f"[tenants.{tenant}] outcome_keys has two keys {doubled[0]!r}; give each an id of its own")
    return keys
