"""Who may import whom: the contracts of `[tool.importlinter]` in pyproject.toml hold, and a broken one is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("nightschool", "collector/nightschool_collector", "nightly/nightschool_nightly", "serving/nightschool_serving")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the packages in `folder`, with the project's contracts."""
    paths = [str(folder / Path(package).parent) for package in PACKAGES]
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [*command, "--config", str(ROOT / "pyproject.toml")], env=environment, cwd=folder, capture_output=True, text=True
    )


def test_the_contracts_hold() -> None:
    """Services meet only in nightschool, imports run down inside each package, and nothing is in a circle."""
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        ("nightschool/keys.py", "import nightschool_nightly.night", "Services meet"),
        ("collector/nightschool_collector/app.py", "def late():\n    from nightschool_serving import guard", "Services meet"),
        ("nightly/nightschool_nightly/freeze/freeze.py", "import nightschool_nightly.gate.gate", "Imports inside the night"),
        (
            "nightschool/errors.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nightschool.sdk import client",
            "No folder and no file",
        ),
    ],
)
def test_a_planted_import_is_seen(tmp_path: Path, file: str, planted: str, broken: str) -> None:
    """Inside a function or for types only, an import that a contract forbids breaks that contract."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a", encoding="utf-8") as target:
        target.write(f"\n{planted}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert any(broken in line and "BROKEN" in line for line in done.stdout.splitlines()), done.stdout
