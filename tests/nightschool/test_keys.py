"""API keys and pseudonyms."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nightschool.errors import ConfigError
from nightschool.keys import KeyRing, hash_key, new_key, subject_of

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates included


def test_a_key_opens_its_tenant_and_no_other() -> None:
    """Each of a tenant's keys opens it; what is stored is only the SHA-256."""
    keys = {tenant: [new_key(tenant), new_key(tenant)] for tenant in ("acme", "bank")}
    ring = KeyRing({tenant: [hashlib.sha256(key.encode()).hexdigest() for key in held] for tenant, held in keys.items()})
    for tenant, held in keys.items():
        assert {ring.tenant_of(f"Bearer {key}") for key in held} == {tenant}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer   ",
        "KEY",
        "Basic KEY",
        "bearerKEY",
        "Bearer KEYx",
        "Bearer Bearer KEY",
        "Bearer HASH",
    ],
)
def test_anything_else_opens_nothing(header: str | None) -> None:
    """Without a header, with another scheme, a changed key or the stored hash itself there is no tenant."""
    key = new_key("acme")
    ring = KeyRing({"acme": [hash_key(key)]})
    assert ring.tenant_of(header and header.replace("KEY", key).replace("HASH", hash_key(key))) is None
    assert ring.tenant_of(f"Bearer {key}") == "acme"


def test_the_scheme_is_read_without_case_and_spaces_are_trimmed() -> None:
    """`bearer` in any case, as HTTP has it."""
    key = new_key("acme")
    ring = KeyRing({"acme": [hash_key(key)]})
    assert {ring.tenant_of(header) for header in (f"bearer {key}", f"BEARER   {key} ")} == {"acme"}


@given(ANY_TEXT)
@example("\ud800")
def test_no_header_is_an_error(header: str) -> None:
    """Whatever a client sends is a tenant or None, never an exception."""
    assert KeyRing({"acme": ["a" * 64]}).tenant_of(header) is None
    assert KeyRing({"acme": ["a" * 64]}).tenant_of(f"Bearer {header}") is None


def test_a_key_of_two_tenants_is_refused() -> None:
    """A key that would open either of two tenants opens neither: the ring is not made."""
    with pytest.raises(ConfigError, match="'acme' and 'bank' share a key"):
        KeyRing({"bank": ["a" * 64], "acme": ["a" * 64]})
    assert KeyRing({"acme": ["a" * 64, "a" * 64]})


def test_a_key_is_random_and_says_whose_it_is() -> None:
    """ns-<tenant>-<43 characters>: 256 random bits, never the same twice, only for a legal tenant name."""
    made = {new_key("acme") for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("ns-acme-") and len(key) == len("ns-acme-") + 43 for key in made)
    with pytest.raises(ConfigError, match="is not a tenant name"):
        new_key("../acme")


def test_a_pseudonym_is_stable_keyed_and_of_128_bits() -> None:
    """The same user and secret give the same 32 hex digits, pinned; another secret or user gives others."""
    assert subject_of("secret", "mia") == "4e817ec7dff85a21cf6426db3d917f79"
    assert len({subject_of(secret, user) for secret in ("secret", "other") for user in ("mia", "tom")}) == 4


def test_an_empty_secret_makes_no_pseudonym() -> None:
    """Without a secret anybody could find the user of a pseudonym by trying names."""
    with pytest.raises(ConfigError, match="the secret behind pseudonyms is empty"):
        subject_of("", "mia")


@given(ANY_TEXT.filter(bool), ANY_TEXT)
@example("\ud800", "\udfff")
def test_a_pseudonym_exists_for_every_text(secret: str, user: str) -> None:
    """Any user id gets a pseudonym of 32 hex digits, a broken one included."""
    assert len(bytes.fromhex(subject_of(secret, user))) == 16
