"""What a reader can rely on in every folder: files and classes of a size to read, and names that say what is in them."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = tuple(ROOT / name for name in ("nightschool", "collector", "nightly", "serving"))
CODE = (*SOURCE, ROOT / "tests", ROOT / "examples", ROOT / "benchmarks")
MAX_FILES, MAX_LINES, MAX_CLASS_LINES = 20, 400, 200


def source_files() -> Iterator[Path]:
    for folder in SOURCE:
        yield from sorted(folder.rglob("*.py"))


def test_no_folder_holds_more_files_than_a_screen_shows() -> None:
    """At most 20 source files lie flat in a folder, `__init__.py` not counted; more want a room of their own."""
    counts = Counter(path.parent for path in source_files() if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): number for folder, number in counts.items() if number > MAX_FILES} == {}


def test_no_source_file_and_no_class_is_too_long_to_read() -> None:
    """At most 400 lines a file and 200 a class."""
    long = []
    for path in source_files():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MAX_LINES:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
        long += [
            f"{path.relative_to(ROOT)}: class {c.name}" for c in classes if (c.end_lineno or 0) - c.lineno >= MAX_CLASS_LINES
        ]
    assert long == []


def test_no_file_is_called_utils() -> None:
    """If a function has a topic, the topic names the file."""
    assert not [p for folder in CODE for p in folder.rglob("*.py") if p.stem in ("util", "utils", "helper", "helpers", "misc")]


def test_no_init_file_under_tests_and_no_name_twice() -> None:
    """tests/ holds no __init__.py, and every test file's name is its own: pytest and mypy stop at either."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert "__init__.py" not in names
    assert [name for name, count in names.items() if count > 1] == []


def test_every_folder_says_what_is_in_it() -> None:
    """Each package and sub-package has an `__init__.py` whose docstring is a sentence."""
    silent = []
    for folder in {path.parent for path in source_files()} - {ROOT / name for name in ("collector", "nightly", "serving")}:
        init = folder / "__init__.py"
        if not init.exists() or not (ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or "").strip():
            silent.append(str(folder.relative_to(ROOT)))
    assert silent == []
