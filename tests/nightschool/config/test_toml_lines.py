"""The line on which a key of a TOML text stands."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightschool.config.toml_lines import line_of, line_of_error

TEXT = '''\
# a comment with [fake] and key = 1
top = 1
dotted.one.two = 2

[stream]   # a comment
url = """
[not.a.table]
key = 1
"""
after = 1

  [ tenants . "a.b" ]
  list = [
    "x = 1",
    ["y"],
  ]
  'quoted key' = 1
inline = { deep = { deeper = 1 }, other = 2 }

[tenants.acme]
key = 1
[[array.of]]
key = 1
[implicit.parent.child]
'''


@pytest.mark.parametrize(
    ("at", "line"),
    [
        (["top"], 2),
        (["dotted"], 3),
        (["dotted", "one", "two"], 3),
        (["stream"], 5),
        (["stream", "url"], 6),
        (["stream", "after"], 10),
        (["tenants"], 12),
        (["tenants", "a.b"], 12),
        (["tenants", "a.b", "list"], 13),
        (["tenants", "a.b", "quoted key"], 17),
        (["tenants", "a.b", "inline", "deep", "deeper"], 18),
        (["tenants", "acme"], 20),
        (["tenants", "acme", "key"], 21),
        (["array"], 22),
        (["array", "of", "key"], 23),
        (["implicit"], 24),
        (["implicit", "parent", "child"], 24),
        (["fake"], None),
        (["not"], None),
        (["key"], None),
        (["stream", "key"], None),
        (["tenants", "acme", "list"], None),
        (["y"], None),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_key_is_found_where_its_statement_begins(at: list[str], line: int | None, newline: str) -> None:
    """Tables, dotted, quoted and inline keys are found; what looks like a key in a text or a comment is not."""
    assert line_of(TEXT.replace("\n", newline), at) == line


@pytest.mark.parametrize(
    ("text", "line"), [("a = 1\nb = \n", 2), ("a = 1\n\n[x", 3), ("a = [1,\n2,\n", 2), ("= 1", 1), ("a = 1\na = 2\n", 2)]
)
def test_a_syntax_error_has_a_line(text: str, line: int) -> None:
    """The line that tomllib names, or the last one when the text ends too early."""
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads(text)
    assert line_of_error(text, caught.value) == line


NAMES = st.text(st.sampled_from("ab.[]=\"' #"), min_size=1, max_size=5)


@given(st.lists(st.tuples(NAMES, NAMES, st.integers(0, 3)), min_size=1, max_size=8, unique_by=lambda entry: entry[0]))
def test_every_key_is_found_whatever_it_is_called(entries: list[tuple[str, str, int]]) -> None:
    """Quoted table and key names of any characters, with blank lines and comments between, are found on their lines."""
    lines: list[str] = []
    expected: dict[tuple[str, ...], int] = {}
    for table, key, blanks in entries:
        lines += ["# [a] b = 1"] * blanks
        lines.append("[" + quoted(table) + "]")
        expected[table,] = len(lines)
        lines.append(f"{quoted(key)} = 1")
        expected[table, key] = len(lines)
    assert {at: line_of("\n".join(lines), at) for at in expected} == expected


def quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
