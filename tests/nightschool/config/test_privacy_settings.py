"""[privacy] for all tenants, [tenants.NAME.privacy] for one, and mistakes in either with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightschool.config.reader import parse_config
from nightschool.config.settings import Config
from nightschool.errors import ConfigError
from nightschool.redaction import DEFAULT_KINDS


def parse(text: str) -> Config:
    return parse_config(text, base=Path())


def test_a_tenant_replaces_single_keys_of_what_is_shared() -> None:
    """A key that its table does not give is as in [privacy]; given in neither, it is the default, with every kind."""
    config = parse('[privacy]\nallow = ["@example.com"]\n[tenants.acme.privacy]\nkinds = ["email"]\n[tenants.globex]\n')
    assert config.tenants["acme"].privacy.rules().kinds == ("email",)
    assert config.tenants["acme"].privacy.allow == config.tenants["globex"].privacy.allow == ("@example.com",)
    assert config.tenants["globex"].privacy.kinds == parse("").privacy.kinds == DEFAULT_KINDS
    assert parse("[tenants.acme]").tenants["acme"].privacy.enabled


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[privacy]\nkinds = ["mail"]', r":2: kind 'mail' is unknown; allowed are "),
        (
            '[tenants.acme.privacy]\nenabled = true\npatterns = ["x: (a+)+"]',
            r":3: pattern '\(a\+\)\+' can match in too many ways",
        ),
        ("[tenants.acme.privacy]\nkind = 1", r":2: unknown key 'kind' in \[tenants\.acme\.privacy\]; allowed are enabled"),
        ("[tenants.acme]\nprivacy = 3", r":2: tenants\.acme\.privacy is 3; it must be a table"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, said: str) -> None:
    """Rules are compiled when the file is read, not when the first span comes."""
    with pytest.raises(ConfigError, match=said):
        parse(text)
