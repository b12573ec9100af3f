"""Reads and checks nightschool.toml.

Unknown keys and bad values are errors that name the file, the line, what was got and what is allowed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from nightschool.config.settings import DEFAULT_OUTCOMES, Config, OutcomeConfig, PrivacyConfig, TenantConfig
from nightschool.config.toml_lines import line_of, line_of_error
from nightschool.errors import ConfigError, MissingExtraError, shown
from nightschool.redaction import Rules
from nightschool.tenants import check_tenant

# (smaller setting, larger setting, why): in the wrong order they would be refused, or have no effect, only hours later.
_ORDERED = (
    ("serving.max_loras", "serving.max_cpu_loras", "vLLM also keeps in memory every adapter of a batch"),
    ("serving.default_max_tokens", "serving.max_model_len", "vLLM would refuse every request without a limit of its own"),
    ("night.lora_rank", "serving.max_lora_rank", "serving would refuse every release of the night"),
    ("night.min_groups", "night.prompts_per_step", "no step could ever have that many groups"),
    ("night.min_holdout", "night.max_holdout", "the gate would never have enough prompts"),
    ("collector.max_body_mib", "collector.max_in_flight_per_tenant_mib", "the largest body could never get in"),
    ("collector.max_in_flight_per_tenant_mib", "collector.max_in_flight_mib", "a tenant could never use its share"),
)


def load_config(path: str | Path) -> Config:
    """Read and check nightschool.toml; every `ConfigError` names the file and the line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; 'nightschool init' writes one, --config names another") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return parse_config(text, source=str(path), base=path.resolve().parent)


def parse_config(text: str, *, source: str = "nightschool.toml", base: Path) -> Config:
    """Check the text of a nightschool.toml; relative paths are taken from `base`."""
    try:
        raw = tomllib.loads(text)
    except ValueError as error:  # a TOMLDecodeError, or for a number of 5,000 digits a plain ValueError
        raise ConfigError(f"{source}:{line_of_error(text, error)}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not valid TOML: brackets are nested too deeply") from None
    return _Reader(text, source, base).config(raw)


class _Reader:
    """Turns parsed TOML into dataclasses; an error has the line of what is wrong."""

    def __init__(self, text: str, source: str, base: Path) -> None:
        self.text, self.source, self.base = text, source, base

    def config(self, raw: Mapping[str, Any]) -> Config:
        sections = {f.name: f for f in fields(Config)}
        for name in raw:
            if name not in sections:
                raise self.error((name,), f"unknown section or key {name!r}; allowed are {', '.join(sections)}")
        built: dict[str, Any] = {}
        for name, kind in get_type_hints(Config).items():
            if name == "tenants":
                tables = self.table((name,), raw.get(name, {}))
                built[name] = {tenant: self.tenant(tenant, table, built["privacy"]) for tenant, table in tables.items()}
            elif name == "privacy":
                built[name] = self.privacy((name,), raw.get(name, {}), PrivacyConfig())
            elif name == "outcomes":
                tables = self.table((name,), raw.get(name, {}))
                built[name] = {**DEFAULT_OUTCOMES, **{outcome: self.outcome(outcome, table) for outcome, table in tables.items()}}
            else:
                built[name] = self.section(kind, (name,), raw.get(name, {}))
        config = Config(**built)
        self.check_order(config)
        self.check_keys(config)
        self.check_stream(config)
        return config

    def check_order(self, config: Config) -> None:
        for small, large, why in _ORDERED:
            low, high = (getattr(getattr(config, section), name) for section, name in (small.split("."), large.split(".")))
            if low > high > 0:  # 0 is computed when the service starts, so that it fits
                at = next((at for at in (small, large) if line_of(self.text, at.split("."))), small)
                raise self.error(tuple(at.split(".")), f"{small} is {low}; allowed is at most {large}, which is {high}: {why}")

    def check_stream(self, config: Config) -> None:
        try:
            config.stream.security()
        except ConfigError as error:
            raise self.error(("stream", "security_protocol"), str(error)) from None

    def check_keys(self, config: Config) -> None:
        owners: dict[str, str] = {}
        for name, tenant in config.tenants.items():
            for digest in tenant.key_sha256:
                if owners.setdefault(digest, name) != name:
                    message = (
                        f"key_sha256 {digest[:12]}... is also a key of tenant {owners[digest]!r}; allowed is one tenant a key"
                    )
                    raise self.error(("tenants", name, "key_sha256"), f"{message}, make another with 'nightschool key'")

    def privacy(self, at: tuple[str, ...], table: Any, shared: PrivacyConfig) -> PrivacyConfig:
        """What the table gives, over what all tenants share. Its rules are compiled, to find a bad pattern here."""
        section: PrivacyConfig = self.section(PrivacyConfig, at, table)
        for name in {"kinds", "patterns", "allow", "deny"} & set(table):
            try:
                Rules(**{"kinds": (), name: getattr(section, name)})
            except (ConfigError, MissingExtraError) as error:
                raise self.error((*at, name), str(error)) from None
        return replace(shared, **{given: getattr(section, given) for given in table})

    def tenant(self, name: str, table: Any, shared: PrivacyConfig) -> TenantConfig:
        try:
            check_tenant(name)
        except ConfigError as error:
            raise self.error(("tenants", name), str(error)) from None
        at = ("tenants", name)
        own = {key: value for key, value in self.table(at, table).items() if key != "privacy"}
        privacy = self.privacy((*at, "privacy"), table.get("privacy", {}), shared)
        return replace(self.section(TenantConfig, at, own), privacy=privacy)  # type: ignore[no-any-return]

    def outcome(self, name: str, table: Any) -> OutcomeConfig:
        """What the table gives, over the defaults of this name."""
        section: OutcomeConfig = self.section(OutcomeConfig, ("outcomes", name), table)
        return replace(DEFAULT_OUTCOMES.get(name, OutcomeConfig()), **{given: getattr(section, given) for given in table})

    def section(self, kind: type, at: tuple[str, ...], raw: Any) -> Any:
        known = {f.name: f for f in fields(kind)}
        hints = get_type_hints(kind)
        values = {}
        for name, value in self.table(at, raw).items():
            if name not in known:
                raise self.error((*at, name), f"unknown key {name!r} in [{'.'.join(at)}]; allowed are {', '.join(known)}")
            values[name] = self.value(known[name], hints[name], (*at, name), value)
        return kind(**{f.name: values[f.name] if f.name in values else self.placed(f, f.default) for f in fields(kind)})

    def table(self, at: tuple[str, ...], raw: Any) -> Mapping[str, Any]:
        if not isinstance(raw, dict):
            raise self.error(at, f"{'.'.join(at)} is {shown(raw)}; it must be a table like [{'.'.join(at)}]")
        return raw

    def value(self, setting: Field[Any], kind: Any, at: tuple[str, ...], raw: Any) -> Any:
        if get_origin(kind) is tuple:
            if not isinstance(raw, list):
                raise self.error(at, f"{at[-1]} is {shown(raw)}; it must be a list")
            return tuple(self.value(setting, get_args(kind)[0], at, item) for item in raw)
        checked = self.typed(kind, at, raw)
        rules = setting.metadata
        if rules["one_of"] and checked not in rules["one_of"]:
            raise self.error(at, f"{at[-1]} is {shown(raw)}; allowed are {', '.join(map(repr, rules['one_of']))}")
        if rules["pattern"] and not re.fullmatch(rules["pattern"], str(raw)):
            raise self.error(at, f"{at[-1]} is {shown(raw)}; it must be: {rules['meaning']}")
        low, high = rules["ge"], rules["le"]
        if (low is not None and not checked >= low) or (high is not None and not checked <= high):
            allowed = f"from {low} to {high}" if high is not None else f"at least {low}"
            raise self.error(at, f"{at[-1]} is {shown(raw)}; allowed is {allowed}")
        return self.placed(setting, checked)

    def typed(self, kind: Any, at: tuple[str, ...], raw: Any) -> Any:
        if kind is Path and isinstance(raw, str) and raw and "\0" not in raw:
            return Path(raw)
        if kind is float and isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) < 1 << 63:
            return float(raw)
        if isinstance(raw, kind) and not (kind is int and isinstance(raw, bool)):
            return raw
        names = {
            str: "a string",
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            Path: "a path, as a non-empty string",
        }
        raise self.error(at, f"{at[-1]} is {shown(raw)}; it must be {names[kind]}")

    def placed(self, setting: Field[Any], value: Any) -> Any:
        """`value` with every relative path in it taken from the folder of the configuration."""
        if isinstance(value, tuple):
            return tuple(self.placed(setting, item) for item in value)
        if isinstance(value, Path):
            return self.base / value
        beside = setting.metadata["beside"]
        return beside(self.base, value) if beside else value

    def error(self, at: tuple[str, ...], message: str) -> ConfigError:
        return ConfigError(f"{self.source}:{line_of(self.text, at) or 1}: {message}")
