"""The seams: who may import whom, read from the syntax tree of every file, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "nightschool": ROOT / "nightschool",
    "nightschool_collector": ROOT / "collector" / "nightschool_collector",
    "nightschool_nightly": ROOT / "nightly" / "nightschool_nightly",
    "nightschool_serving": ROOT / "serving" / "nightschool_serving",
}
FOLDERS = ("collector", "nightly", "serving")
CODE = ("nightschool", *FOLDERS, "tests", "examples", "benchmarks")


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import, `import_module("...")` and `__import__("...")` with a literal included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and node.args and isinstance(name := node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(name.value, str):
                yield node.lineno, name.value


def crossings(source: str, package: str) -> list[tuple[int, str]]:
    """Imports in a file of `package` that a seam forbids: `nightschool` may import no service, a service no other one."""
    allowed = {package, "nightschool"}
    return [
        (line, name) for line, name in imported_modules(source) if (top := name.split(".")[0]) in PACKAGES and top not in allowed
    ]


def through_folders(source: str) -> list[tuple[int, str]]:
    """Imports through a folder name: the same file a second time, as another module object."""
    return [(line, name) for line, name in imported_modules(source) if name.split(".")[0] in FOLDERS]


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_services_meet_only_in_nightschool(package: str) -> None:
    """Services import nightschool, never each other; nightschool imports no service."""
    found = {
        str(path.relative_to(ROOT)): bad
        for path in python_files(PACKAGES[package])
        if (bad := crossings(path.read_text(encoding="utf-8"), package))
    }
    assert not found


def test_no_import_goes_through_a_folder_name() -> None:
    """No file anywhere imports collector., nightly. or serving."""
    found = {
        str(path.relative_to(ROOT)): bad
        for folder in CODE
        for path in python_files(ROOT / folder)
        if (bad := through_folders(path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    "planted",
    [
        "import nightschool_nightly",
        "import nightschool_nightly.night as night",
        "from nightschool_nightly.night import run",
        "def late():\n    from nightschool_nightly import night",
        "from importlib import import_module\nimport_module('nightschool_nightly.night')",
        "import importlib\nimportlib.import_module('nightschool_nightly')",
        "__import__('nightschool_nightly')",
    ],
)
def test_a_planted_crossing_is_found(planted: str) -> None:
    """Every way to write the forbidden import is seen, from nightschool and from another service."""
    assert crossings(planted, "nightschool")
    assert crossings(planted, "nightschool_collector")
    assert not crossings(planted, "nightschool_nightly")


def test_a_planted_folder_import_is_found() -> None:
    """The folder-name rule sees it in a function too, and lets the packages' own names pass."""
    assert through_folders("def late():\n    from serving.nightschool_serving import guard")
    assert not through_folders("from nightschool_serving import guard\nimport nightschool.config")


def test_no_init_file_under_tests_and_no_basename_twice() -> None:
    """tests/ holds no __init__.py, and every test file's name is its own: pytest and mypy stop at either."""
    tests = [path for path in python_files(ROOT / "tests") if path.name != "conftest.py"]
    names = [path.name for path in tests]
    assert "__init__.py" not in names
    assert sorted(set(names)) == sorted(names)


def test_no_file_is_called_utils() -> None:
    """If a function has a topic, the topic names the file."""
    assert not [path for folder in CODE for path in python_files(ROOT / folder) if path.stem in ("util", "utils", "helpers")]
