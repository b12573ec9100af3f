"""What an app imports stays light: looked at in a fresh interpreter."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest

HEAVY = {"torch", "vllm", "fastapi", "transformers", "peft", "kafka", "duckdb", "pyarrow", "openai", "numpy"}
CONTRACTS = (
    "nightschool.registry.base_model",
    "nightschool.cli",
    "nightschool.config.settings",
    "nightschool.episode",
    "nightschool.errors",
    "nightschool.keys",
    "nightschool.outcomes.record",
    "nightschool.registry.folder",
    "nightschool.registry.release",
    "nightschool.semconv",
    "nightschool.stream",
    "nightschool.stream.base",
)


def top_levels_after(statement: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after `statement`."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def own_dependencies() -> set[str]:
    """Names of the distributions that `pip install nightschool` brings, without any extra."""
    found, waiting = set(), ["nightschool"]
    while waiting:
        name = canonical(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:  # asked for on another platform or Python
            continue
        waiting += [match[0] for line in needed if "extra ==" not in line and (match := re.match(r"[\w.-]+", line))]
    return found


@pytest.mark.parametrize("module", ["nightschool", *CONTRACTS])
def test_importing_a_contract_brings_nothing_heavy(module: str) -> None:
    """No torch, vllm, fastapi, transformers, peft or Kafka client comes with `import nightschool` or any contract."""
    assert not top_levels_after(f"import {module}") & HEAVY


@pytest.mark.parametrize("module", ["nightschool", *CONTRACTS])
def test_importing_a_contract_brings_only_what_pip_install_brings(module: str) -> None:
    """Every package imported is one of nightschool's own dependencies, so the light install suffices."""
    owners, allowed = packages_distributions(), own_dependencies()
    imported = top_levels_after(f"import {module}") - top_levels_after("pass") - set(sys.stdlib_module_names)
    foreign = {name for name in imported & set(owners) if not {canonical(owner) for owner in owners[name]} & allowed}
    assert not foreign


def test_the_look_at_sys_modules_sees_a_heavy_import() -> None:
    """The check notices a heavy package that is imported."""
    assert "numpy" in top_levels_after("import numpy") & HEAVY
