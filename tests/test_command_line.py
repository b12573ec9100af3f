"""The `nightschool` command: help that needs nothing, errors that fit a line, and the commands that need no service."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nightschool.cli import COMMANDS, command_line, start_service
from nightschool.config.reader import load_config
from nightschool.errors import MissingExtraError
from nightschool.keys import KeyRing

HEAVY = {"torch", "vllm", "fastapi", "transformers", "peft", "kafka", "duckdb", "pyarrow", "openai", "numpy"}
ROOT = Path(__file__).parents[1]


def nightschool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nightschool", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_answers_without_a_heavy_import(command: str | None) -> None:
    """`nightschool --help` and every subcommand's help exit 0 and import no torch, vllm or fastapi."""
    arguments = [*([command] if command else []), "--help"]
    code = (
        "import json, sys\nfrom nightschool.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    print(stop.code, file=sys.stderr)\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, modules = done.stderr.splitlines()[-2:]
    assert status == "0"
    assert done.stdout.startswith("usage: nightschool")
    assert not {name.split(".")[0] for name in json.loads(modules)} & HEAVY


def test_every_command_is_listed_and_summarised(tmp_path: Path) -> None:
    """The first help names each command, and every file in cli/ is one."""
    shown = nightschool("--help", cwd=tmp_path).stdout
    assert all(re.search(rf"^    {command}\b", shown, re.MULTILINE) for command in COMMANDS)
    files = {path.stem for path in (ROOT / "nightschool" / "cli").glob("*.py")} - {"__init__"}
    assert files == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["config", "--check"], r"nightschool\.toml does not exist; 'nightschool init' writes one"),
        (["config", "--check", "--config", "bad.toml"], r"bad\.toml:2: prot is not|bad\.toml:2: unknown key 'prot'"),
        (["config", "--check", "--config", "."], r"\. cannot be read"),
        (["key", "--tenant", "../etc"], r"tenant '\.\./etc' is not a tenant name; allowed are"),
        (["init", "--tenant", "Bank"], r"tenant 'Bank' is not a tenant name; allowed are"),
        (["init", "--config", "bad.toml/nightschool.toml"], r"Not a directory|File exists"),
        (["init", "--config", "bad.toml"], r"bad\.toml exists already; move it away"),
    ],
)
def test_an_error_is_one_line_and_status_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    """What a user can get wrong is one line on standard error and exit status 2, and leaves no file behind."""
    (tmp_path / "bad.toml").write_text("[collector]\nprot = 1\n")
    done = nightschool(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"nightschool {arguments[0]}: .*({said}).*\n", done.stderr)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bad.toml"]


@pytest.mark.parametrize("arguments", [[], ["dream"], ["key"], ["night"]])
def test_wrong_arguments_show_the_usage(tmp_path: Path, arguments: list[str]) -> None:
    """No command, an unknown one or a missing argument: usage on standard error, exit status 2."""
    done = nightschool(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: nightschool")


def test_init_writes_a_configuration_that_is_valid_and_knows_its_key(tmp_path: Path) -> None:
    """`init` then `config --check` succeed; the key it prints once opens the tenant and is stored only as a hash."""
    done = nightschool("init", "--tenant", "acme", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    checked = nightschool("config", "--check", cwd=tmp_path)
    assert (checked.returncode, checked.stdout) == (
        0,
        "nightschool.toml is valid: 1 tenants (acme)\ntenant acme, task 'triage': its rubric reads 'queue'\n",
    )
    key = re.search(r"shown once: (ns-acme-\S+)", done.stdout)
    assert key
    config = load_config(tmp_path / "nightschool.toml")
    ring = KeyRing({name: tenant.key_sha256 for name, tenant in config.tenants.items()})
    assert ring.tenant_of(f"Bearer {key[1]}") == "acme"
    assert key[1] not in (tmp_path / "nightschool.toml").read_text()
    assert config.tenants["acme"].rubrics == (tmp_path / "rubrics" / "acme.toml",)
    assert config.tenants["acme"].rubrics[0].is_file()


def test_a_named_file_is_shown_with_its_own_values(tmp_path: Path) -> None:
    """`config --config FILE` prints what a night would use: the file's values, and the default beside what differs."""
    (tmp_path / "strict.toml").write_text("[night]\nconfidence = 0.99\n[tenants.bank.privacy]\ndeny = ['ab']\n")
    shown = nightschool("config", "--config", "strict.toml", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\nconfidence = 0.99  # default: 0.95\n" in shown.stdout
    assert shown.stdout.count("# default: ") == 2
    assert 'privacy = { deny = ["ab"] }' in shown.stdout
    (tmp_path / "again.toml").write_text(shown.stdout)
    again = nightschool("config", "--config", "again.toml", cwd=tmp_path)
    assert again.stdout == shown.stdout


def test_check_finds_a_rubric_that_is_not_there(tmp_path: Path) -> None:
    """A configuration whose rubric file is missing is not valid: no night could run."""
    nightschool("init", "--tenant", "acme", cwd=tmp_path)
    (tmp_path / "rubrics" / "acme.toml").unlink()
    done = nightschool("config", "--check", cwd=tmp_path)
    assert done.returncode == 2
    assert "tenant 'acme' names the rubric" in done.stderr


@pytest.mark.parametrize(
    ("rubric", "said"),
    [
        ('task = "t"\nitems = 3\n', r"rubrics.acme\.toml: a rubric needs at least one \[\[items\]\] table"),
        ('task = "t"\n[[items]]\nname = "a"\nkind = "check"\ncheck = "none"\n', r"item 1 \('a'\): "),
        ("task", "not valid TOML"),
    ],
)
def test_check_reads_the_rubrics(tmp_path: Path, rubric: str, said: str) -> None:
    """A rubric that no night could use makes the configuration not valid, in the evening and not at night."""
    nightschool("init", "--tenant", "acme", cwd=tmp_path)
    (tmp_path / "rubrics" / "acme.toml").write_text(rubric)
    done = nightschool("config", "--check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(said, done.stderr)


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    """A second `init` refuses and leaves the first one's files as they are."""
    assert nightschool("init", cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.toml")}
    assert nightschool("init", cwd=tmp_path).returncode == 2
    (tmp_path / "nightschool.toml").unlink()
    assert "rubrics/demo.toml exists already" in nightschool("init", cwd=tmp_path).stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.toml")} == {
        path: data for path, data in before.items() if path.name != "nightschool.toml"
    }


def test_key_prints_a_key_and_its_hash(tmp_path: Path) -> None:
    """`key` prints a new key each time, with the SHA-256 that goes into the configuration."""
    shown = [nightschool("key", "--tenant", "acme", cwd=tmp_path).stdout for _ in range(2)]
    keys = [re.search(r"ns-acme-[\w-]{43}$", text, re.MULTILINE) for text in shown]
    assert keys[0] and keys[1]
    assert keys[0][0] != keys[1][0]
    assert hashlib.sha256(keys[0][0].encode()).hexdigest() in shown[0]


def test_options_are_passed_on_as_they_were_given() -> None:
    """A flag that is set, a value and a default are passed on; a flag that is not set and an option not given are not."""
    given = argparse.Namespace(config="a b.toml", tenant="acme", wait=1.5, dry_run=True, resume=False, key=None, empty="")
    line = command_line(given, "config", "tenant", "wait", "dry_run", "resume", "key", "empty")
    assert line == ["--config", "a b.toml", "--tenant", "acme", "--wait", "1.5", "--dry-run", "--empty", ""]


def test_a_missing_service_names_the_pip_line() -> None:
    """A service that is not installed is a sentence with the pip line, not a traceback."""
    with pytest.raises(MissingExtraError, match=r"pip install 'nightschool\[collector\]'"):
        start_service("nightschool_absent", [], part="the collector", extra="collector")
