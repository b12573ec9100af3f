"""What the configuration says about browser tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nightschool.config.settings import DEFAULT_OUTCOMES, Config, OutcomeConfig
from nightschool.errors import ConfigError
from nightschool.outcomes.tokens import OutcomeKey, TokenVerifier, load_key


@dataclass(frozen=True, slots=True)
class BrowserSettings:
    """Who may send outcomes from a browser, and which; the first three by tenant."""

    keys: Mapping[str, Sequence[OutcomeKey]] = field(default_factory=dict)
    """Secrets that tokens may be signed with."""
    revoked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Tokens that are refused although their signature is valid."""
    origins: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Origins whose pages may send outcomes and read the answers."""
    rules: Mapping[str, OutcomeConfig] = field(default_factory=lambda: DEFAULT_OUTCOMES)
    """The allowed values, by the name of the outcome."""
    writes_per_minute: int = 60
    """From one network address."""

    @classmethod
    def of(cls, config: Config, *, only: Collection[str] | None = None) -> BrowserSettings:
        """Reads the secrets, `only` of these tenants; `ConfigError` for one that is missing or too short."""
        tenants = {name: tenant for name, tenant in config.tenants.items() if only is None or name in only}
        return cls(
            keys={name: _load_keys(name, tenant.outcome_keys) for name, tenant in tenants.items()},
            revoked={name: tenant.revoked_tokens for name, tenant in tenants.items()},
            origins={name: tenant.outcome_origins for name, tenant in tenants.items()},
            rules=config.outcomes,
            writes_per_minute=config.collector.browser_writes_per_minute,
        )


class BrowserAccess:
    """The settings in force: a changed configuration replaces them while the collector runs."""

    def __init__(self, settings: BrowserSettings) -> None:
        self.use(settings)

    def use(self, settings: BrowserSettings) -> None:
        """From now on these count."""
        self.verifier = TokenVerifier(settings.keys, settings.revoked)
        self.all_origins = frozenset(origin for origins in settings.origins.values() for origin in origins)
        self.settings = settings


def _load_keys(tenant: str, sources: Sequence[str]) -> list[OutcomeKey]:
    keys = [load_key(source) for source in sources]
    kids = [key.kid for key in keys]
    if doubled := sorted({kid for kid in kids if kids.count(kid) > 1}):
        raise ConfigError(f"[tenants.{tenant}] outcome_keys has two keys {doubled[0]!r}; give each an id of its own")
    return keys
