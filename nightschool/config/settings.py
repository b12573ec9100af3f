"""`nightschool.toml`: every setting, declared once with its default, its bounds and its meaning.

Unknown keys and bad values are errors that name the file, the line, what was got and what is allowed. Paths are relative to
the file. `nightschool config` prints the documented schema, generated from the declarations below.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from nightschool.config.toml_lines import line_of, line_of_error
from nightschool.errors import ConfigError, MissingExtraError, shown
from nightschool.redaction import ALL_KINDS, DEFAULT_KINDS, Rules
from nightschool.registry.base_model import PACKAGED
from nightschool.stream.kafka_connection import MECHANISMS, PASSWORD_VARIABLE, PROTOCOLS, KafkaSecurity
from nightschool.tenants import check_tenant


def _setting(
    default: Any,
    meaning: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    one_of: tuple[Any, ...] = (),
    pattern: str = "",
    beside: Callable[[Path, str], str] | None = None,
) -> Any:
    """A dataclass field with its documentation and bounds; `beside` places a text that names a file beside the TOML file."""
    rules = {"meaning": meaning, "ge": ge, "le": le, "one_of": one_of, "pattern": pattern, "beside": beside}
    return field(default=default, metadata=rules)


def _url_beside(base: Path, url: str) -> str:
    return f"sqlite:{base / url.removeprefix('sqlite:')}" if url.startswith("sqlite:") else url


def _file_beside(base: Path, path: str) -> str:
    return str(base / path) if path else ""


def _secret_beside(base: Path, source: str) -> str:
    kid, _, path = source.partition("=file:")
    return f"{kid}=file:{base / path}" if path else source


DURATION_PATTERN = r"[0-9]{1,6}[smhd]"


def duration_ms(text: str) -> int:
    """Milliseconds of a duration like '24h'."""
    return int(text[:-1]) * {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}[text[-1]]


def _model_beside(base: Path, path: str) -> str:
    return path if path == PACKAGED else str(base / path)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamConfig:
    """[stream]: where spans and outcomes are kept."""

    url: str = _setting(
        "sqlite:var/stream.db",
        "'sqlite:PATH' or 'kafka://HOST:PORT[,HOST:PORT...]'",
        pattern=r"sqlite:.+|kafka://.+",
        beside=_url_beside,
    )
    partitions: int = _setting(12, "partitions of a topic when it is created", ge=1, le=10_000)
    security_protocol: str = _setting("PLAINTEXT", "how clients reach the Kafka brokers", one_of=PROTOCOLS)
    ssl_ca: str = _setting(
        "", "PEM file of the authorities that Kafka's certificate may come from; empty: the system's", beside=_file_beside
    )
    ssl_certificate: str = _setting("", "PEM file of our own certificate for Kafka; empty shows none", beside=_file_beside)
    ssl_key: str = _setting("", "PEM file of that certificate's unencrypted private key", beside=_file_beside)
    sasl_mechanism: str = _setting("", "how we prove to Kafka who we are; empty without SASL", one_of=MECHANISMS)
    sasl_user: str = _setting("", "user name for Kafka")
    sasl_password_file: str = _setting(
        "", f"file with that user's password; empty takes the environment variable {PASSWORD_VARIABLE}", beside=_file_beside
    )

    def security(self) -> KafkaSecurity:
        """The settings of TLS and SASL, as clients take them; `ConfigError` for what can never connect."""
        return KafkaSecurity(
            protocol=self.security_protocol,
            ca=self.ssl_ca,
            certificate=self.ssl_certificate,
            key=self.ssl_key,
            mechanism=self.sasl_mechanism,
            user=self.sasl_user,
            password_file=self.sasl_password_file,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """[registry]: where releases are kept."""

    path: Path = _setting(Path("var/registry"), "a folder on local disk or NFS")  # noqa: RUF009 - a Path is immutable


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """[model]: the base model all tenants share."""

    path: str = _setting(
        PACKAGED,
        f"a folder with a Hugging Face causal model, or '{PACKAGED}' (carried by a package)",
        pattern=r".+",
        beside=_model_beside,
    )
    dtype: str = _setting(
        "bfloat16", "type of the base weights when sampling, training and serving", one_of=("bfloat16", "float16", "float32")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorConfig:
    """[collector]: OTLP and outcomes in."""

    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(4318, "port to listen on", ge=1, le=65535)
    grpc_port: int = _setting(0, "port of OTLP/gRPC (4317 by convention); 0 for none", ge=0, le=65535)
    workers: int = _setting(1, "processes that share the ports; more than one only where a core is not enough", ge=1, le=256)
    max_body_mib: int = _setting(64, "largest request body, before and after decompression, in MiB", ge=1, le=1024)
    browser_writes_per_minute: int = _setting(
        60, "outcomes by browser token that one network address may send a minute", ge=1, le=1_000_000
    )
    max_in_flight_mib: int = _setting(
        96, "spans and logs of all tenants being stored, in MiB; more is refused with 503", ge=1, le=1 << 20
    )
    max_in_flight_per_tenant_mib: int = _setting(64, "the same of one tenant", ge=1, le=1 << 20)
    max_in_flight_outcomes_mib: int = _setting(16, "the same of outcomes, which have room of their own", ge=1, le=1 << 20)
    metrics_key_sha256: tuple[str, ...] = _setting(
        (),
        "SHA-256 of keys that show each tenant's numbers at /metrics; without one it shows only totals",
        pattern=r"[0-9a-f]{64}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """[serving]: vLLM with our endpoint plugin."""

    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8000, "port to listen on", ge=1, le=65535)
    collector: str = _setting(
        "http://127.0.0.1:4318",
        "http(s) URL of the collector that gets the server spans; empty to send none",
        pattern=r"|https?://.+",
    )
    poll_seconds: float = _setting(1.0, "how often a replica looks at the registry's pointers", ge=0.1, le=3600)
    max_loras: int = _setting(4, "adapters in one batch (vLLM max_loras)", ge=1, le=256)
    max_cpu_loras: int = _setting(16, "adapters kept in memory (vLLM max_cpu_loras)", ge=1, le=4096)
    max_lora_rank: int = _setting(16, "largest adapter rank served", one_of=(8, 16, 32, 64, 128, 256, 320, 512))
    max_model_len: int = _setting(2048, "longest prompt plus answer, in tokens", ge=16)
    kv_cache_gib: int = _setting(1, "memory for the KV cache on CPUs, in GiB", ge=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NightConfig:
    """[night]: how a night learns and decides. All of it is part of the night's manifest."""

    state: Path = _setting(Path("var/nights"), "folder of night manifests and checkpoints")  # noqa: RUF009 - a Path is immutable
    seed: int = _setting(0, "seed of every random choice", ge=0, le=2**31 - 1)
    steps: int = _setting(40, "optimizer steps", ge=1, le=100_000)
    prompts_per_step: int = _setting(16, "prompts sampled a step", ge=1, le=4096)
    group_size: int = _setting(8, "rollouts per prompt (G)", ge=2, le=256)
    temperature: float = _setting(
        1.0, "sampling temperature of rollouts; the trainer's log-probabilities use the same", ge=0.1, le=2.0
    )
    max_tokens: int = _setting(64, "longest rollout; the median request's own max_tokens is used when smaller", ge=1, le=65_536)
    learning_rate: float = _setting(5e-4, "AdamW learning rate of the LoRA matrices", ge=1e-8, le=1e-1)
    warmup_steps: int = _setting(3, "steps of linear warm-up", ge=0, le=10_000)
    lora_rank: int = _setting(16, "rank of a new adapter; an existing one keeps its own", one_of=(8, 16, 32, 64, 128))
    lora_alpha: int = _setting(32, "LoRA alpha; the adapter is scaled by alpha / rank", ge=1, le=1024)
    negative_weight: float = _setting(0.3, "factor on negative advantages, from 0 (only reinforce) to 1 (GRPO)", ge=0.0, le=1.0)
    min_groups: int = _setting(1, "a step with fewer groups that have signal changes nothing", ge=1, le=4096)
    max_share_per_user: float = _setting(0.05, "largest share of a night's prompts from one user", ge=0.001, le=1.0)
    holdout_share: float = _setting(0.25, "share of users whose episodes only test the candidate", ge=0.05, le=0.9)
    min_holdout: int = _setting(20, "fewest scored held-out prompts that can carry a decision", ge=2, le=1_000_000)
    min_train: int = _setting(20, "fewest training prompts worth a night", ge=1, le=1_000_000)
    confidence: float = _setting(
        0.95, "one-sided confidence of the bootstrap lower bound that must lie above zero", ge=0.5, le=0.9999
    )
    outcome_window: str = _setting(
        "30d", "how long after a request its outcomes are awaited (s, m, h or d)", pattern=DURATION_PATTERN
    )
    kl_budget: float = _setting(0.5, "largest forward KL(base || candidate) on general prompts, nats per token", ge=0.0, le=100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeConfig:
    """[outcomes.example]: an outcome name; thumb and edit settle after 24h, resolved after 72h, conversion after 14d, others at once."""

    settles_after: str = _setting(
        "0h",
        "how long its newest value must stand before a night learns from it (s, m, h or d); a human's final answer settles at once",
        pattern=DURATION_PATTERN,
    )
    kind: str = _setting(
        "", "what a browser token may write under this name; empty: anything", one_of=("", "bool", "number", "text")
    )
    lowest: float = _setting(-1e9, "smallest number a browser token may write")
    highest: float = _setting(1e9, "largest number a browser token may write")

    @property
    def settles_after_ms(self) -> int:
        """`settles_after` in milliseconds."""
        return duration_ms(self.settles_after)


DEFAULT_OUTCOMES: Mapping[str, OutcomeConfig] = {
    "thumb": OutcomeConfig(settles_after="24h", kind="bool"),
    "edit": OutcomeConfig(settles_after="24h", kind="text"),
    "resolved": OutcomeConfig(settles_after="72h", kind="bool"),
    "conversion": OutcomeConfig(settles_after="14d"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """[privacy]: what the collector takes out of everything it stores; [tenants.example.privacy] replaces single keys of it."""

    enabled: bool = _setting(True, "false stores everything as it comes, raw user ids too")
    kinds: tuple[str, ...] = _setting(DEFAULT_KINDS, f"what is looked for, out of: {', '.join(ALL_KINDS)}")
    patterns: tuple[str, ...] = _setting((), "kinds of your own, as 'name: regular expression' with bounded repeats")
    allow: tuple[str, ...] = _setting((), "texts that are never a finding; '@example.com' allows all addresses there")
    deny: tuple[str, ...] = _setting((), "words that always are one")

    def rules(self) -> Rules:
        """The rules of a redactor."""
        return Rules(self.kinds, self.patterns, self.allow, self.deny)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantConfig:
    """[tenants.example]: a customer of the app; one table like this for each, under its name."""

    key_sha256: tuple[str, ...] = _setting(
        (),
        "SHA-256 of each API key as 64 lowercase hex digits ('nightschool key --tenant NAME' makes one)",
        pattern=r"[0-9a-f]{64}",
    )
    rubrics: tuple[Path, ...] = _setting((), "rubric files, one per task")
    outcome_keys: tuple[str, ...] = _setting(
        (),
        "secrets that sign browser tokens, the current and then the previous one: 'KID=file:PATH' or 'KID=env:VARIABLE'",
        pattern=r"[A-Za-z0-9_-]{1,32}=(file:.+|env:[A-Za-z_][A-Za-z0-9_]*)",
        beside=_secret_beside,
    )
    outcome_origins: tuple[str, ...] = _setting(
        (), "origins of the pages that may send browser tokens, like 'https://app.example'", pattern=r"null|https?://[^/\s]+"
    )
    revoked_tokens: tuple[str, ...] = _setting(
        (), "browser tokens that count no more: 'kid:KID' for all of a key, 'jti:ID' for one", pattern=r"(kid|jti):.+"
    )
    subject_key_file: str = _setting(
        "",
        "file with the secret behind all pseudonyms, the subject_key of the app's configure(); empty: the first of key_sha256",
        beside=_file_beside,
    )
    privacy: PrivacyConfig = _setting(PrivacyConfig(), "what differs for this tenant from [privacy]")  # noqa: RUF009 - it is immutable


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole of nightschool.toml."""

    stream: StreamConfig = field(default_factory=StreamConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    collector: CollectorConfig = field(default_factory=CollectorConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    night: NightConfig = field(default_factory=NightConfig)
    outcomes: Mapping[str, OutcomeConfig] = field(default_factory=lambda: DEFAULT_OUTCOMES)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    tenants: Mapping[str, TenantConfig] = field(default_factory=dict)

    def tenant(self, name: str) -> TenantConfig:
        """The settings of tenant `name`; `ConfigError` lists the tenants there are."""
        if name not in self.tenants:
            known = ", ".join(sorted(self.tenants)) or "none"
            raise ConfigError(f"tenant {name!r} is not in nightschool.toml (known: {known}); add a [tenants.{name}] table")
        return self.tenants[name]


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


# (at most, this, because): settings that would be refused, or would do nothing, hours later.
_ORDERED = (
    ("serving.max_loras", "serving.max_cpu_loras", "vLLM also keeps in memory every adapter of a batch"),
    ("night.lora_rank", "serving.max_lora_rank", "serving would refuse every release of the night"),
    ("night.min_groups", "night.prompts_per_step", "no step could ever have that many groups"),
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
    except ValueError as error:  # TOMLDecodeError is one; a number of 5,000 digits is a plain one
        raise ConfigError(f"{source}:{line_of_error(text, error)}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{source}: not valid TOML: brackets are nested too deeply") from None
    return _Reader(text, source, base).config(raw)


class _Reader:
    """Turns parsed TOML into dataclasses, with the line of whatever is wrong."""

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
            if low > high:
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
        """What the table gives, on top of what is shared by all tenants; its rules are tried, so that a bad pattern is found here."""
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
        """What the table gives, on top of the defaults of this name."""
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
        """Whatever names a file is relative to the folder of the configuration; an absolute path stays as it is."""
        if isinstance(value, tuple):
            return tuple(self.placed(setting, item) for item in value)
        if isinstance(value, Path):
            return self.base / value
        beside = setting.metadata["beside"]
        return beside(self.base, value) if beside else value

    def error(self, at: tuple[str, ...], message: str) -> ConfigError:
        return ConfigError(f"{self.source}:{line_of(self.text, at) or 1}: {message}")


def describe_settings() -> str:
    """Every section and setting with default and meaning, as a commented nightschool.toml."""
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
