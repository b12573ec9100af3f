"""API keys: what a tenant's app sends, stored only as a SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence

from nightschool.errors import ConfigError
from nightschool.tenants import check_tenant


def new_key(tenant: str) -> str:
    """A fresh key with 256 bits of randomness; the tenant in it is for people, it decides nothing."""
    return f"ns-{check_tenant(tenant)}-{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """What `nightschool.toml` stores. A key is random, so a fast hash is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class KeyRing:
    """Finds the tenant of a key: one hash and one look-up, whatever the number of tenants.

    What is looked up is a SHA-256 of the key, so the time of a look-up says nothing about a stored key.
    """

    def __init__(self, hashes: Mapping[str, Sequence[str]]) -> None:
        self._tenants: dict[str, str] = {}
        for tenant, digests in sorted(hashes.items()):
            for digest in digests:
                if (owner := self._tenants.setdefault(digest, tenant)) != tenant:
                    raise ConfigError(f"tenants {owner!r} and {tenant!r} share a key; allowed is one tenant a key, make another")

    @property
    def tenants(self) -> list[str]:
        """Every tenant that has a key, in order."""
        return sorted(set(self._tenants.values()))

    def tenant_of(self, authorization: str | None) -> str | None:
        """The tenant of an `Authorization: Bearer KEY` header; None for none, another scheme or an unknown key."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return None
        return self._tenants.get(hash_key(key.strip()))


def subject_of(secret: str, user: str) -> str:
    """The pseudonym of `user`: a keyed hash, equal for the same user and secret, of 128 bits in hex.

    An empty secret is a `ConfigError`: anybody could compute such pseudonyms and find the user behind one.
    """
    if not secret:
        raise ConfigError("the secret behind pseudonyms is empty; give the tenant's API key or a subject_key")
    return hmac.new(secret.encode("utf-8", "surrogatepass"), user.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[
        :32
    ]
