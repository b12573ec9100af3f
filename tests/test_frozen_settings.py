"""Every setting and environment variable there is. A new one is a deliberate change of this file, with a reader and a test."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

from nightschool.config.schema import SECTIONS, describe_settings
from nightschool.config.settings import Config

ROOT = Path(__file__).parents[1]

SETTINGS = {
    "stream": {
        "url",
        "partitions",
        "security_protocol",
        "ssl_ca",
        "ssl_certificate",
        "ssl_key",
        "sasl_mechanism",
        "sasl_user",
        "sasl_password_file",
    },
    "registry": {"path"},
    "model": {"path", "dtype"},
    "collector": {
        "host",
        "port",
        "grpc_port",
        "workers",
        "max_body_mib",
        "browser_writes_per_minute",
        "max_in_flight_mib",
        "max_in_flight_per_tenant_mib",
        "max_in_flight_outcomes_mib",
        "metrics_key_sha256",
    },
    "serving": {
        "host",
        "port",
        "collector",
        "poll_seconds",
        "max_loras",
        "max_cpu_loras",
        "max_lora_rank",
        "max_model_len",
        "default_max_tokens",
        "kv_cache_gib",
        "threads",
    },
    "night": {
        "state",
        "seed",
        "steps",
        "prompts_per_step",
        "group_size",
        "temperature",
        "max_tokens",
        "learning_rate",
        "warmup_steps",
        "lora_rank",
        "lora_alpha",
        "negative_weight",
        "min_groups",
        "max_share_per_user",
        "holdout_share",
        "min_holdout",
        "max_holdout",
        "min_train",
        "confidence",
        "outcome_window",
        "threads",
        "kl_budget",
        "kl_weight",
    },
    "outcomes": {"settles_after", "kind", "lowest", "highest"},
    "privacy": {"enabled", "kinds", "patterns", "allow", "deny"},
    "tenants": {"key_sha256", "rubrics", "outcome_keys", "outcome_origins", "revoked_tokens", "subject_key_file", "privacy"},
}
ENVIRONMENT = {
    "NIGHTSCHOOL_CONFIG",  # serving: the configuration file, handed to the vLLM process
    "NIGHTSCHOOL_DISABLED",  # SDK: every call does nothing
    "NIGHTSCHOOL_API_KEY",  # doctor: the tenant's key, where no --key is given
    "NIGHTSCHOOL_KAFKA_PASSWORD",  # stream: the password of [stream] sasl_user, where no file holds it
    "NIGHTSCHOOL_STRICT",  # SDK: raise into the app what is swallowed otherwise
}


def test_the_settings_are_exactly_these() -> None:
    """nightschool.toml has no section and no key beyond the pinned ones."""
    names = {kind: name for name, kind in zip((f.name for f in fields(Config)), SECTIONS, strict=True)}
    assert {names[kind]: {f.name for f in fields(kind)} for kind in SECTIONS} == SETTINGS


def test_the_environment_variables_are_exactly_these() -> None:
    """The code names no NIGHTSCHOOL_ variable beyond the pinned ones."""
    found = {
        node.value
        for folder in ("nightschool", "collector", "nightly", "serving")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"NIGHTSCHOOL_[A-Z0-9_]+", node.value)
    }
    assert found == ENVIRONMENT


def test_docs_settings_is_what_the_command_prints() -> None:
    """docs/settings.md holds the output of `nightschool config`, word for word."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert blocks[0] == describe_settings(), "replace the first block of docs/settings.md by the output of `nightschool config`"


def test_docs_settings_names_every_environment_variable() -> None:
    """docs/settings.md explains each NIGHTSCHOOL_ variable, and no other."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert set(re.findall(r"NIGHTSCHOOL_[A-Z0-9_]+", page)) == ENVIRONMENT
