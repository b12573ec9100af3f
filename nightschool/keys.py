"""API keys, which are stored only as their SHA-256, and the pseudonyms of users."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence

from nightschool.errors import ConfigError
from nightschool.tenants import check_tenant

_KEY = re.compile(r"ns-([a-z0-9][a-z0-9-]{0,62})-[\w-]{43}", re.ASCII)


def new_key(tenant: str) -> str:
    """A fresh key with 256 random bits. The tenant in it is for people to read; nothing depends on it."""
    return f"ns-{check_tenant(tenant)}-{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """The SHA-256 of `key` in hex, as `nightschool.toml` stores it. A key is random, so a fast hash is safe."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def tenant_named_in(key: str) -> str | None:
    """The tenant in the text of a key that `new_key` made; None for a key of another form."""
    found = _KEY.fullmatch(key)
    return found[1] if found else None


class KeyRing:
    """Finds the tenant of a key: one hash and one look-up, whatever the number of tenants.

    The look-up is by the key's SHA-256, so that its time tells nothing about the keys that are stored.
    """

    def __init__(self, hashes: Mapping[str, Sequence[str]]) -> None:
        self._tenants = _owners(hashes)

    def replace(self, hashes: Mapping[str, Sequence[str]]) -> None:
        """Make `hashes` the keys that count from now on, by one assignment: every look-up sees all old or all new ones."""
        self._tenants = _owners(hashes)

    @property
    def tenants(self) -> list[str]:
        """Every tenant that has a key, in order."""
        return sorted(set(self._tenants.values()))

    def tenant_of(self, authorization: str | None) -> str | None:
        """The tenant of an `Authorization: Bearer KEY` header; None for another scheme, an unknown key or no header."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return None
        return self._tenants.get(hash_key(key.strip()))


def _owners(hashes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The tenant of each key's SHA-256; `ConfigError` for a key of two tenants."""
    owners: dict[str, str] = {}
    for tenant, digests in sorted(hashes.items()):
        for digest in digests:
            if (owner := owners.setdefault(digest, tenant)) != tenant:
                raise ConfigError(f"tenants {owner!r} and {tenant!r} share a key; allowed is one tenant a key, make another")
    return owners


def subject_of(secret: str, user: str) -> str:
    """The pseudonym of `user`: a keyed hash of 128 bits in hex, equal for the same user and secret.

    An empty secret is a `ConfigError`, because anybody could then compute pseudonyms and find the user of one.
    """
    if not secret:
        raise ConfigError("the secret behind pseudonyms is empty; give the tenant's API key or a subject_key")
    return hmac.new(secret.encode("utf-8", "surrogatepass"), user.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[
        :32
    ]
