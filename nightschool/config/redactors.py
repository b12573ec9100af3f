"""The redactors that nightschool.toml describes, and the secrets that make a tenant's pseudonyms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nightschool.config.settings import Config, TenantConfig
from nightschool.errors import ConfigError
from nightschool.redaction.redactor import Redactor


def subject_secrets(name: str, tenant: TenantConfig) -> tuple[str, ...]:
    """The secrets that make the pseudonyms of tenant `name`: its subject key, else the SHA-256 of each of its API keys.

    An app without a `subject_key` uses the SHA-256 of its API key, which is the text that `key_sha256` holds.
    `ConfigError` when the file cannot be read or is empty; the secret itself is never in a message.
    """
    if not tenant.subject_key_file:
        return tenant.key_sha256
    try:
        secret = Path(tenant.subject_key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[tenants.{name}] subject_key_file {tenant.subject_key_file} cannot be read: {error}") from None
    if not secret:
        raise ConfigError(
            f"[tenants.{name}] subject_key_file {tenant.subject_key_file} is empty; put the app's subject_key in it"
        )
    return (secret,)


def redactors(config: Config) -> Mapping[str, Redactor]:
    """The redactor of each tenant that has a secret and whose `[privacy]` is enabled."""
    found = {}
    for name, tenant in config.tenants.items():
        secrets = subject_secrets(name, tenant) if tenant.privacy.enabled else ()
        if secrets:
            found[name] = Redactor(tenant.privacy.rules(), secrets[0])
    return found
