"""`nightschool.toml`: every setting, declared once with its default, its bounds and its meaning.

`reader` checks a file against these declarations, and `schema` prints them. Paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightschool.dtype import AUTO, DTYPES
from nightschool.errors import ConfigError
from nightschool.redaction import ALL_KINDS, DEFAULT_KINDS, Rules
from nightschool.registry.base_model import PACKAGED
from nightschool.stream.kafka_connection import MECHANISMS, PASSWORD_VARIABLE, PROTOCOLS, KafkaSecurity


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
    """A dataclass field with its meaning and bounds.

    `beside` is for a text that names a file: it makes the path in it relative to the folder of the TOML file.
    """
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
    """[stream]: where spans and outcomes are stored."""

    url: str = _setting(
        "sqlite:var/stream.db",
        "'sqlite:PATH' or 'kafka://HOST:PORT[,HOST:PORT...]'",
        pattern=r"sqlite:.+|kafka://.+",
        beside=_url_beside,
    )
    partitions: int = _setting(12, "partitions of a topic when it is created", ge=1, le=10_000)
    security_protocol: str = _setting("PLAINTEXT", "how clients reach the Kafka brokers", one_of=PROTOCOLS)
    ssl_ca: str = _setting(
        "", "PEM file of the authorities that may have signed Kafka's certificate; empty: the system's", beside=_file_beside
    )
    ssl_certificate: str = _setting("", "PEM file of our own certificate for Kafka; empty for none", beside=_file_beside)
    ssl_key: str = _setting("", "PEM file of that certificate's unencrypted private key", beside=_file_beside)
    sasl_mechanism: str = _setting("", "SASL mechanism to log in to Kafka with; empty without SASL", one_of=MECHANISMS)
    sasl_user: str = _setting("", "user name for Kafka")
    sasl_password_file: str = _setting(
        "", f"file with that user's password; empty takes the environment variable {PASSWORD_VARIABLE}", beside=_file_beside
    )

    def security(self) -> KafkaSecurity:
        """The settings of TLS and SASL as Kafka clients take them; `ConfigError` for what can never connect."""
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
    """[model]: the base model that all tenants share."""

    path: str = _setting(
        PACKAGED,
        f"a folder with a Hugging Face causal model, or '{PACKAGED}' (carried by a package)",
        pattern=r".+",
        beside=_model_beside,
    )
    dtype: str = _setting(
        AUTO,
        "type of the base weights when sampling, training and serving; auto: bfloat16 where the processor has it, else float32 "
        "on CPUs and float16 on GPUs",
        one_of=(AUTO, *DTYPES),
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
        0,
        "spans and logs being stored at a time, of all tenants, in MiB; more is refused with 503; "
        "0: an eighth of the memory, at most 96 for each worker",
        ge=0,
        le=1 << 20,
    )
    max_in_flight_per_tenant_mib: int = _setting(0, "the same for one tenant; 0: two thirds of it", ge=0, le=1 << 20)
    max_in_flight_outcomes_mib: int = _setting(
        0, "the same for outcomes, which have a limit of their own; 0: a sixth of it", ge=0, le=1 << 20
    )
    metrics_key_sha256: tuple[str, ...] = _setting(
        (),
        "SHA-256 of keys with which /metrics shows the numbers of each tenant; without one it shows only totals",
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
    default_max_tokens: int = _setting(
        0, "longest answer to a chat request that names no limit, in tokens; 0: whatever max_model_len leaves", ge=0, le=1 << 20
    )
    kv_cache_gib: int = _setting(
        0,
        "memory for the KV cache on CPUs, in GiB, of serving and again of a night; "
        "0: an eighth of the machine's memory, at most half of what is free",
        ge=0,
    )
    threads: int = _setting(
        0, "threads that compute on CPUs; 0: OMP_NUM_THREADS, or every core but one, which HTTP needs", ge=0, le=1024
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NightConfig:
    """[night]: how a night learns and decides. All of it is in the night's manifest."""

    state: Path = _setting(Path("var/nights"), "folder of night manifests and checkpoints")  # noqa: RUF009 - a Path is immutable
    seed: int = _setting(0, "seed of every random choice", ge=0, le=2**31 - 1)
    steps: int = _setting(40, "optimizer steps", ge=1, le=100_000)
    prompts_per_step: int = _setting(16, "prompts sampled a step", ge=1, le=4096)
    group_size: int = _setting(8, "rollouts per prompt (G)", ge=2, le=256)
    temperature: float = _setting(
        1.0, "sampling temperature of rollouts; the trainer's log-probabilities use the same", ge=0.1, le=2.0
    )
    max_tokens: int = _setting(
        0,
        "longest rollout in tokens, never above serving's own limit; 0: twice the longest answer of a human, at least 64",
        ge=0,
        le=1 << 20,
    )
    learning_rate: float = _setting(5e-4, "AdamW learning rate of the LoRA matrices", ge=1e-8, le=1e-1)
    warmup_steps: int = _setting(3, "steps of linear warm-up", ge=0, le=10_000)
    lora_rank: int = _setting(16, "rank of a new adapter; an existing one keeps its own", one_of=(8, 16, 32, 64, 128))
    lora_alpha: int = _setting(32, "LoRA alpha; the adapter is scaled by alpha / rank", ge=1, le=1024)
    negative_weight: float = _setting(0.3, "factor on negative advantages, from 0 (only reinforce) to 1 (GRPO)", ge=0.0, le=1.0)
    min_groups: int = _setting(1, "a step in which fewer groups have rewards that differ changes nothing", ge=1, le=4096)
    max_share_per_user: float = _setting(0.05, "largest share of a night's prompts from one user", ge=0.001, le=1.0)
    holdout_share: float = _setting(0.25, "share of users whose episodes are held out to test the candidate", ge=0.05, le=0.9)
    min_holdout: int = _setting(20, "fewest scored held-out prompts with which the gate decides", ge=2, le=1_000_000)
    max_holdout: int = _setting(
        400, "most held-out prompts that every policy answers; a later night may test with the rest", ge=2, le=1_000_000
    )
    min_train: int = _setting(20, "fewest training prompts with which a night trains", ge=1, le=1_000_000)
    confidence: float = _setting(
        0.95, "one-sided confidence of the bootstrap lower bound that must lie above zero", ge=0.5, le=0.9999
    )
    outcome_window: str = _setting(
        "30d", "how long after a request its outcomes may still come (s, m, h or d)", pattern=DURATION_PATTERN
    )
    threads: int = _setting(
        0, "threads that compute on CPUs; 0: OMP_NUM_THREADS, or every core; a night is resumed with as many", ge=0, le=1024
    )
    kl_weight: float = _setting(
        1.0, "weight of the loss term that keeps answers to general prompts as the base model gives them", ge=0.0, le=100.0
    )
    kl_budget: float = _setting(0.1, "largest forward KL(base || candidate) on general prompts, nats per token", ge=0.0, le=100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeConfig:
    """[outcomes.example]: an outcome; thumb and edit settle after 24h, resolved 72h, conversion 14d, others at once."""

    settles_after: str = _setting(
        "0h",
        "how long its newest value must stay unchanged before a night learns from it (s, m, h or d); a human's final answer need not wait",
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
    """[privacy]: what the collector takes out of all that it stores; [tenants.example.privacy] replaces single keys."""

    enabled: bool = _setting(True, "false stores everything as it comes, also raw user ids")
    kinds: tuple[str, ...] = _setting(DEFAULT_KINDS, f"what is looked for, out of: {', '.join(ALL_KINDS)}")
    patterns: tuple[str, ...] = _setting((), "kinds of your own, as 'name: regular expression' with bounded repeats")
    allow: tuple[str, ...] = _setting((), "texts that are never a finding; '@example.com' allows every address of that domain")
    deny: tuple[str, ...] = _setting((), "words that are always a finding")

    def rules(self) -> Rules:
        """The rules of a redactor."""
        return Rules(self.kinds, self.patterns, self.allow, self.deny)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantConfig:
    """[tenants.example]: a customer of the app; each has a table like this under its name."""

    key_sha256: tuple[str, ...] = _setting(
        (),
        "SHA-256 of each API key as 64 lowercase hex digits ('nightschool key --tenant NAME' makes one)",
        pattern=r"[0-9a-f]{64}",
    )
    rubrics: tuple[Path, ...] = _setting((), "rubric files, one per task")
    outcome_keys: tuple[str, ...] = _setting(
        (),
        "secrets that sign browser tokens, first the current and then the previous one: 'KID=file:PATH' or 'KID=env:VARIABLE'",
        pattern=r"[A-Za-z0-9_-]{1,32}=(file:.+|env:[A-Za-z_][A-Za-z0-9_]*)",
        beside=_secret_beside,
    )
    outcome_origins: tuple[str, ...] = _setting(
        (), "origins of the pages that may send browser tokens, like 'https://app.example'", pattern=r"null|https?://[^/\s]+"
    )
    revoked_tokens: tuple[str, ...] = _setting(
        (),
        "browser tokens that are no longer valid: 'kid:KID' for all tokens of a key, 'jti:ID' for one",
        pattern=r"(kid|jti):.+",
    )
    subject_key_file: str = _setting(
        "",
        "file with the secret that makes all pseudonyms, the subject_key of the app's configure(); empty: the first of key_sha256",
        beside=_file_beside,
    )
    privacy: PrivacyConfig = _setting(PrivacyConfig(), "what is different from [privacy] for this tenant")  # noqa: RUF009 - it is immutable


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
