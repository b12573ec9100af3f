"""The settings of nightschool.toml as text: what `nightschool config` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from nightschool.config.settings import (
    CollectorConfig,
    Config,
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


def describe_values(config: Config, defaults: Config) -> str:
    """Every section of `config` with its values as a nightschool.toml; what differs from `defaults` says so."""
    blocks = []
    known = dict(_sections(defaults))
    for heading, section in _sections(config):
        usual = known.get(heading, type(section)())
        lines = [heading]
        for setting in fields(section):
            value, default = (_as_toml(getattr(held, setting.name)) for held in (section, usual))
            lines.append(f"{setting.name} = {value}" + (f"  # default: {default}" if value != default else ""))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _sections(config: Config) -> Iterator[tuple[str, Any]]:
    """(heading, section) of everything in `config`; each outcome and each tenant is a section of its own."""
    for held in fields(config):
        value = getattr(config, held.name)
        if is_dataclass(value):
            yield f"[{held.name}]", value
            continue
        for name, table in sorted(value.items()):
            yield f"[{held.name}.{name}]", table


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
    if is_dataclass(value) and not isinstance(value, type):
        changed = [(held.name, getattr(value, held.name)) for held in fields(value) if getattr(value, held.name) != held.default]
        return f"{{ {', '.join(f'{name} = {_as_toml(item)}' for name, item in changed)} }}" if changed else "{}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    return f'"{value}"'
