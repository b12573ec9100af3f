"""nightschool.toml: a good one is read; an error in a bad one has its line, what was got and what is allowed."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightschool.config.reader import load_config, parse_config
from nightschool.config.schema import SECTIONS, describe_settings
from nightschool.config.settings import Config, NightConfig, OutcomeConfig
from nightschool.errors import ConfigError
from nightschool.registry.base_model import PACKAGED, base_model_folder, describe_base_model

BASE = Path("/conf")


def parse(text: str) -> Config:
    return parse_config(text, source="my.toml", base=BASE)


def test_an_empty_file_is_the_defaults() -> None:
    """Nothing has to be set; defaults that are paths are relative to the file's folder."""
    config = parse("")
    assert config.stream.url == "sqlite:/conf/var/stream.db"
    assert config.registry.path == Path("/conf/var/registry")
    assert config.model.path == PACKAGED
    assert config.night == NightConfig(state=Path("/conf/var/nights"))
    assert config.tenants == {}


def test_the_documented_schema_is_the_defaults() -> None:
    """What `nightschool config` prints is itself a valid nightschool.toml that changes nothing."""
    documented = parse(describe_settings())
    per_name = ("outcomes", "tenants")
    assert {f.name: getattr(documented, f.name) for f in fields(Config) if f.name not in per_name} == {
        f.name: getattr(parse(""), f.name) for f in fields(Config) if f.name not in per_name
    }
    assert documented.tenants["example"].key_sha256 == ()
    assert documented.outcomes == {**parse("").outcomes, "example": OutcomeConfig()}


def test_an_outcome_name_keeps_the_defaults_it_does_not_change() -> None:
    """A table changes the keys it gives; an outcome without a table settles at once."""
    outcomes = parse(
        '[outcomes.thumb]\nsettles_after = "90m"\n[outcomes.csat]\nkind = "number"\nlowest = 1\nhighest = 5'
    ).outcomes
    assert (outcomes["thumb"].settles_after_ms, outcomes["thumb"].kind) == (90 * 60_000, "bool")
    assert outcomes["csat"] == OutcomeConfig(kind="number", lowest=1.0, highest=5.0)
    assert outcomes["resolved"].settles_after_ms == 72 * 3_600_000
    with pytest.raises(ConfigError, match=r"my\.toml:2: settles_after is '1 day'; it must be: how long"):
        parse('[outcomes.thumb]\nsettles_after = "1 day"')


def test_the_file_of_an_outcome_key_lies_beside_the_configuration() -> None:
    """A secret is named by its file or environment variable, and is never in the file itself."""
    tenant = parse('[tenants.a]\noutcome_keys = ["k2=file:secrets/k2", "k1=env:OLD_KEY", "k0=file:/etc/k0"]').tenant("a")
    assert tenant.outcome_keys == ("k2=file:/conf/secrets/k2", "k1=env:OLD_KEY", "k0=file:/etc/k0")
    with pytest.raises(ConfigError, match=r"outcome_keys is 'hunter2'; it must be: secrets that sign"):
        parse('[tenants.a]\noutcome_keys = ["hunter2"]')


def test_the_documented_schema_explains_every_setting() -> None:
    """Each setting is there once, below a comment with its meaning and its bounds."""
    text = describe_settings()
    for kind in SECTIONS:
        for setting in fields(kind):
            assert re.search(rf"^# {re.escape(setting.metadata['meaning'])}.*\n{setting.name} = ", text, re.MULTILINE)
    assert "(8, 16" not in text
    assert "(one of 8, 16, 32, 64, 128)" in text
    assert "(1 to 65535)" in text
    assert "(at least 16)" in text


def test_a_full_file_is_read_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    """Every relative path, also inside a stream URL, is taken from the file's folder; absolute paths stay."""
    path = tmp_path / "nightschool.toml"
    path.write_text(
        f"""
stream.url = "sqlite:data/s.db"
registry = {{ path = "/abs/registry" }}
[model]
path = "models/tiny"
[night]
state = "nights"
temperature = 1
[tenants.acme]
key_sha256 = ["{"a" * 64}", "{"b" * 64}"]
rubrics = ["rubrics/triage.toml", "/abs/reply.toml"]
"""
    )
    config = load_config(path)
    assert config.stream.url == f"sqlite:{tmp_path}/data/s.db"
    assert config.registry.path == Path("/abs/registry")
    assert config.model.path == f"{tmp_path}/models/tiny"
    assert config.night.state == tmp_path / "nights"
    assert config.night.temperature == 1.0
    assert type(config.night.temperature) is float
    assert config.tenant("acme").key_sha256 == ("a" * 64, "b" * 64)
    assert config.tenant("acme").rubrics == (tmp_path / "rubrics/triage.toml", Path("/abs/reply.toml"))


def test_kafka_and_absolute_urls_stay_as_they_are() -> None:
    """Only a relative SQLite path is taken from the file's folder."""
    assert parse('[stream]\nurl = "kafka://a:9092,b:9092"').stream.url == "kafka://a:9092,b:9092"
    assert parse('[stream]\nurl = "sqlite:/abs/s.db"').stream.url == "sqlite:/abs/s.db"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[colector]\nport = 1", r"1: unknown section or key 'colector'; allowed are stream, registry, model, collector,"),
        ("\n\ndebug = true", r"3: unknown section or key 'debug'; allowed are stream,"),
        ("[foo.bar]\nx = 1", r"1: unknown section or key 'foo'"),
        ("[collector]\nhost = 'h'\nprot = 1", r"3: unknown key 'prot' in \[collector\]; allowed are host, port, grpc_port"),
        ("\n[tenants.acme]\nkey = 1", r"3: unknown key 'key' in \[tenants\.acme\]; allowed are key_sha256, rubrics"),
        ("\n[tenants]\nacme.key = 1", r"3: unknown key 'key' in \[tenants\.acme\]"),
        ("\ntenants.acme = { rubrics = [], key = 1 }", r"2: unknown key 'key' in \[tenants\.acme\]"),
        ("stream = 3", r"1: stream is 3; it must be a table like \[stream\]"),
        ("[[stream]]\nurl = 'sqlite:x'", r"1: stream is \[\{.*\}\]; it must be a table like \[stream\]"),
        ("tenants = []", r"1: tenants is \[\]; it must be a table like \[tenants\]"),
        ("[tenants]\nacme = 3", r"2: tenants\.acme is 3; it must be a table like \[tenants\.acme\]"),
        ("[tenants.Acme]", r"1: tenant 'Acme' is not a tenant name; allowed are 1 to 63 of a-z"),
        ("[tenants]\n['tenants'.\"../etc\"]", r"2: tenant '\.\./etc' is not a tenant name"),
        ("[collector]\nport = '4318'", r"2: port is '4318'; it must be a whole number"),
        ("[collector]\nport = 4318.0", r"2: port is 4318\.0; it must be a whole number"),
        ("[collector]\nport = true", r"2: port is True; it must be a whole number"),
        ("[collector]\nport = 0", r"2: port is 0; allowed is from 1 to 65535"),
        ("[collector]\nport = 65536", r"2: port is 65536; allowed is from 1 to 65535"),
        ("[collector]\nport = 0x" + "f" * 5000, r"2: port is of type int and too large to print; allowed is from 1 to 65535"),
        ("[collector]\nport = 1979-05-27", r"2: port is datetime\.date.*; it must be a whole number"),
        ("[collector]\nhost = 1", r"2: host is 1; it must be a string"),
        ("[night]\ntemperature = 'hot'", r"2: temperature is 'hot'; it must be a number"),
        ("[night]\ntemperature = true", r"2: temperature is True; it must be a number"),
        ("[night]\ntemperature = nan", r"2: temperature is nan; allowed is from 0\.1 to 2\.0"),
        ("[night]\ntemperature = inf", r"2: temperature is inf; allowed is from 0\.1 to 2\.0"),
        ("[night]\ntemperature = 1" + "0" * 400, r"2: temperature is 10*; it must be a number"),
        ("[night]\n\nlora_rank = 12", r"3: lora_rank is 12; allowed are 8, 16, 32, 64, 128"),
        ("[serving]\nmax_model_len = 1", r"2: max_model_len is 1; allowed is at least 16"),
        ("[model]\ndtype = 'int8'", r"2: dtype is 'int8'; allowed are 'auto', 'bfloat16', 'float16', 'float32'"),
        ("[model]\npath = ''", r"2: path is ''; it must be: a folder with a Hugging Face"),
        ("[stream]\nurl = 'postgres:x'", r"2: url is 'postgres:x'; it must be: 'sqlite:PATH' or 'kafka://HOST"),
        ("[stream]\nurl = 'sqlite:'", r"2: url is 'sqlite:'; it must be"),
        ("[serving]\ncollector = 'localhost:4318'", r"2: collector is 'localhost:4318'; it must be: http\(s\) URL"),
        ("[registry]\npath = ''", r"2: path is ''; it must be a path, as a non-empty string"),
        ('[registry]\npath = "a\\u0000b"', r"2: path is 'a\\x00b'; it must be a path"),
        ("[registry]\npath = 3", r"2: path is 3; it must be a path"),
        ("[tenants.a]\nrubrics = 'r.toml'", r"2: rubrics is 'r\.toml'; it must be a list"),
        ("[tenants.a]\nrubrics = [\n'r.toml',\n3]", r"2: rubrics is 3; it must be a path"),
        (
            "[tenants.a]\nkey_sha256 = ['ns-a-secret']",
            r"2: key_sha256 is 'ns-a-secret'; it must be: SHA-256 of each API key as 64 low",
        ),
        (f"[tenants.a]\nkey_sha256 = ['{'A' * 64}']", r"2: key_sha256 is 'A+'; it must be: .* 64 lowercase hex digits"),
        (
            f"[tenants.a]\nkey_sha256 = ['{'a' * 64}']\n[tenants.b]\nkey_sha256 = ['{'a' * 64}']",
            r"4: key_sha256 aaaaaaaaaaaa\.\.\. is also a key of tenant 'a'; allowed is one tenant a key",
        ),
        (
            "[serving]\nmax_loras = 32",
            r"2: serving\.max_loras is 32; allowed is at most serving\.max_cpu_loras, which is 16: vLLM",
        ),
        (
            "[serving]\ndefault_max_tokens = 4096",
            r"2: serving\.default_max_tokens is 4096; allowed is at most serving\.max_model_len, .* 2048: vLLM",
        ),
        ("[serving]\nmax_cpu_loras = 2", r"2: serving\.max_loras is 4; allowed is at most serving\.max_cpu_loras, which is 2"),
        ("[night]\nmin_holdout = 401", r"2: night\.min_holdout is 401; allowed is at most night\.max_holdout, which is 400"),
        ("[night]\nlora_rank = 32", r"2: night\.lora_rank is 32; allowed is at most serving\.max_lora_rank, which is 16"),
        ("[night]\nmin_groups = 17", r"2: night\.min_groups is 17; allowed is at most night\.prompts_per_step, which is 16"),
        ("[stream]\nurl = ", r"2: not valid TOML: Invalid value"),
        ("[stream]\n[stream]", r"2: not valid TOML: Cannot declare \('stream',\) twice"),
        ("a = 1" + "0" * 5000, r"1: not valid TOML: "),
        ("a = " + "[" * 5000, r" not valid TOML: brackets are nested too deeply"),
    ],
)
def test_a_bad_file_is_named_with_line_value_and_what_is_allowed(text: str, said: str) -> None:
    """Each mistake is one ConfigError: file:line, what was got, what is allowed."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert re.match(rf"my\.toml:{said}", str(caught.value)), str(caught.value)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    """A file that is missing, a folder or not UTF-8: the error has the path and what to do."""
    with pytest.raises(ConfigError, match="does not exist; 'nightschool init' writes one"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"cannot be read: .*[Ii]s a directory"):
        load_config(tmp_path)
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bad\.toml cannot be read: .*utf-8"):
        load_config(tmp_path / "bad.toml")


def test_an_unknown_tenant_lists_the_known_ones() -> None:
    """Asking for a tenant that is not configured says which are."""
    with pytest.raises(
        ConfigError, match=r"tenant 'x' is not in nightschool\.toml \(known: acme, bank\); add a \[tenants\.x\] table"
    ):
        parse("[tenants.bank]\n[tenants.acme]").tenant("x")
    with pytest.raises(ConfigError, match=r"\(known: none\)"):
        parse("").tenant("x")


def bounded_settings() -> list[Any]:
    """Section, setting, type and bounds of every setting that has a lower bound."""
    return [
        pytest.param(section, setting.name, setting.metadata["ge"], setting.metadata["le"], id=f"{section}.{setting.name}")
        for section, kind in zip((f.name for f in fields(Config)), SECTIONS, strict=True)
        for setting in fields(kind)
        if setting.metadata["ge"] is not None
    ]


# Settings that another setting bounds too: with that other one at its limit.
_SLACK = {
    "default_max_tokens": "[serving]\nmax_model_len = 1048576\n",
    "max_loras": "[serving]\nmax_cpu_loras = 4096\n",
    "max_cpu_loras": "[serving]\nmax_loras = 1\n",
    "min_groups": "[night]\nprompts_per_step = 4096\n",
    "min_holdout": "[night]\nmax_holdout = 1000000\n",
    "max_holdout": "[night]\nmin_holdout = 2\n",
    "max_body_mib": "[collector]\nmax_in_flight_per_tenant_mib = 1048576\nmax_in_flight_mib = 1048576\n",
    "max_in_flight_per_tenant_mib": "[collector]\nmax_body_mib = 1\nmax_in_flight_mib = 1048576\n",
    "max_in_flight_mib": "[collector]\nmax_body_mib = 1\nmax_in_flight_per_tenant_mib = 1\n",
}


@pytest.mark.parametrize(("section", "name", "low", "high"), bounded_settings())
def test_every_bound_holds_at_its_edge(section: str, name: str, low: float, high: float | None) -> None:
    """The bound itself is allowed, the next number beyond it is not."""
    slack = _SLACK.get(name, "")
    step = 1 if isinstance(low, int) else 1e-9
    for edge, beyond in ((low, low - step), *([(high, high + step)] if high is not None else [])):
        head = slack if slack.startswith(f"[{section}]") else f"{slack}[{section}]\n"
        assert getattr(getattr(parse(f"{head}{name} = {edge!r}"), section), name) == edge
        with pytest.raises(ConfigError, match=f"{name} is .*; allowed is "):
            parse(f"{head}{name} = {beyond!r}")


TOML = st.text(st.sampled_from("[]{}=\"'.,#\n\\ stream urltenants123-_abé"), max_size=60)


@given(TOML)
def test_no_text_is_another_error(text: str) -> None:
    """Whatever is in the file, the result is a Config or a ConfigError with the line."""
    try:
        config = parse(text)
    except ConfigError as error:
        assert re.match(r"my\.toml:\d+: ", str(error))
    else:
        assert is_dataclass(config)
        assert set(tomllib.loads(text)) <= {f.name for f in fields(Config)}


# --- the base model ---------------------------------------------------------------------------------------------------
def test_a_model_folder_is_described_by_content(tmp_path: Path) -> None:
    """Weights, tokenizer and chat template each have a digest of their own, whatever the folder is called."""

    def model(name: str, **changed: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        files = {
            "config.json": "{}",
            "a.safetensors": "A",
            "b.safetensors": "B",
            "tokenizer.json": "T",
            "chat_template.jinja": "C",
        }
        for file, text in (
            files | {"tokenizer_config.json": "{}"} | {k.replace("__", "."): v for k, v in changed.items()}
        ).items():
            (folder / file).write_text(text)
        return folder

    plain = describe_base_model(base_model_folder(str(model("one"))))
    assert describe_base_model(model("two")) == plain
    for file, part in {
        "b__safetensors": "weights",
        "tokenizer__json": "tokenizer",
        "chat_template__jinja": "chat_template",
    }.items():
        other = describe_base_model(model(part, **{file: "other"}))
        assert [p for p in ("weights", "tokenizer", "chat_template") if getattr(other, p) != getattr(plain, p)] == [part]


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path: Path) -> None:
    """Without configuration, safetensors weights (a pickle is none) or tokenizer the error is one clear sentence."""
    with pytest.raises(ConfigError, match=r"has no config\.json; give a Hugging Face model folder or 'smollm2"):
        base_model_folder(str(tmp_path))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r"holds no \.safetensors file"):
        describe_base_model(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json"):
        describe_base_model(tmp_path)
