"""The settings of nightschool.toml as text: what `nightschool config` prints."""

from __future__ import annotations

from dataclasses import Field, fields, is_dataclass
from typing import Any

from nightschool.config.settings import (
    CollectorConfig,
    ModelConfig,
    NightConfig,
    OutcomeConfig,
    PrivacyConfig,
    RegistryConfig,
    ServingConfig,
    StreamConfig,
    TenantConfig,
)

SECTIONS: tuple[type, ...] = (
    StreamConfig,
    RegistryConfig,
    ModelConfig,
    CollectorConfig,
    ServingConfig,
    NightConfig,
    OutcomeConfig,
    PrivacyConfig,
    TenantConfig,
)


def describe_settings() -> str:
    """Every section and setting with its default and meaning, as a nightschool.toml with comments."""
    blocks = []
    for kind in SECTIONS:
        heading, _, meaning = (kind.__doc__ or "").partition(": ")
        lines = [f"{heading}  # {meaning}"]
        for setting in fields(kind):
            lines += [f"# {setting.metadata['meaning']}{_bounds(setting)}", f"{setting.name} = {_as_toml(setting.default)}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _bounds(setting: Field[Any]) -> str:
    rules = setting.metadata
    if rules["one_of"]:
        return f" (one of {', '.join(str(item) or 'empty' for item in rules['one_of'])})"
    if rules["ge"] is not None:
        return f" ({rules['ge']} to {rules['le']})" if rules["le"] is not None else f" (at least {rules['ge']})"
    return ""


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if is_dataclass(value):
        return "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    return f'"{value}"'
