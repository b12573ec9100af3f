"""Each check of a rubric, and what it says when it is written wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from nightschool.errors import RubricError
from nightschool_nightly.rewards.checks import build_check

SCHEMA = {
    "type": "object",
    "required": ["queue"],
    "properties": {"queue": {"$ref": "#/$defs/queue"}},
    "$defs": {"queue": {"type": "string"}},
}


@pytest.mark.parametrize(
    ("options", "passing", "failing"),
    [
        ({"check": "exact", "value": "card"}, ["card", " card\n"], ["Card", "cards", ""]),
        ({"check": "exact", "value": " CARD ", "ignore_case": True}, ["card", "Card"], ["cards"]),
        ({"check": "one_of", "values": ["card", "fraud"]}, ["card", " fraud"], ["Fraud", "card fraud", ""]),
        ({"check": "one_of", "values": ["STRASSE"], "ignore_case": True}, ["straße"], ["strase"]),
        ({"check": "regex", "pattern": r"\bT-\d+"}, ["see T-42."], ["see t-42", "xT-42", ""]),
        ({"check": "regex", "pattern": r"^t-\d+$", "ignore_case": True}, ["T-42"], ["T-42 x"]),
        ({"check": "length", "min_chars": 2, "max_chars": 4}, ["ab", "  abcd  "], ["a", "abcde", "    "]),
        ({"check": "length"}, ["", "x" * 100_000], ["x" * 100_001]),
        (
            {"check": "json_schema", "schema": SCHEMA},
            ['{"queue": "card"}'],
            ['{"queue": 1}', "{}", "card", "", '{"queue":', "[" * 100_000],
        ),
    ],
)
def test_a_check_tells_right_from_wrong(options: dict[str, Any], passing: list[str], failing: list[str]) -> None:
    """Each check passes what it describes and nothing else, white space around it aside; no answer makes it fail."""
    check = build_check(options)
    assert [check.passes(answer) for answer in passing] == [True] * len(passing)
    assert [check.passes(answer) for answer in failing] == [False] * len(failing)

    # Every beginning of an answer that passes may still pass.
    for answer in passing:
        assert not any(check.fails_already(answer[:end]) for end in range(0, len(answer), max(1, len(answer) // 50)))


@pytest.mark.parametrize(
    ("options", "lost", "open_"),
    [
        (
            {"check": "exact", "value": "loans and fees"},
            ["x", "loans or", "loans and fees are"],
            ["", " loans an", "loans \ufffd"],
        ),
        ({"check": "exact", "value": "Fees", "ignore_case": True}, ["fes"], ["FE", "fees  "]),
        ({"check": "one_of", "values": ["card", "fees"]}, ["The queue", "cards"], ["f", "card "]),
        ({"check": "length", "max_chars": 3}, ["four"], ["abc", "  abc"]),
        ({"check": "regex", "pattern": "a"}, [], ["b"]),
    ],
)
def test_a_beginning_fails_where_nothing_can_save_it(options: dict[str, Any], lost: list[str], open_: list[str]) -> None:
    """Known already is not unknown; where it cannot be told, nothing has failed."""
    check = build_check(options)
    assert [check.fails_already(beginning) for beginning in lost] == [True] * len(lost)
    assert [check.fails_already(beginning) for beginning in open_] == [False] * len(open_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"check": "sounds_nice"}, r"check is 'sounds_nice'; allowed are exact, json_schema, length, one_of, regex"),
        ({}, r"check is missing; allowed are exact"),
        ({"check": ["exact"]}, r"check is \['exact'\]; allowed are exact"),
        (
            {"check": "exact", "value": "a", "case": True},
            r"check 'exact' has the unknown option 'case'; allowed are ignore_case, value",
        ),
        ({"check": "exact"}, r"value is missing; it must be a text"),
        ({"check": "exact", "value": 3}, r"value is 3; it must be a text"),
        ({"check": "exact", "value": "a", "ignore_case": "yes"}, r"ignore_case is 'yes'; it must be true or false"),
        ({"check": "one_of", "values": []}, r"values is \[\]; it must be a list of at least one text"),
        ({"check": "one_of", "values": ["a", 1]}, r"values is \['a', 1\]; it must be a list of at least one text"),
        ({"check": "one_of", "values": "card"}, r"values is 'card'; it must be a list"),
        ({"check": "regex", "pattern": "("}, r"pattern '\(' is not a regular expression: missing"),
        (
            {"check": "regex", "pattern": "a{99999999999999999999}"},
            r"is not a regular expression: the repetition number is too large",
        ),
        (
            {"check": "length", "min_chars": 5, "max_chars": 4},
            r"min_chars is 5 and max_chars 4; they must be 0 <= min_chars <= max_chars",
        ),
        ({"check": "length", "min_chars": -1}, r"min_chars is -1"),
        ({"check": "length", "max_chars": True}, r"max_chars is True; it must be a whole number"),
        ({"check": "json_schema"}, r"schema is missing; it must be a table"),
        ({"check": "json_schema", "schema": {"type": "text"}}, r"schema is not a JSON schema: 'text'"),
        ({"check": "json_schema", "schema": {"pattern": "("}}, r"schema is not a JSON schema: '\(' is not a 'regex'"),
        (
            {"check": "json_schema", "schema": {"$ref": "#/$defs/none"}},
            r"schema refers to '#/\$defs/none', which is not in it",
        ),
        (
            {"check": "json_schema", "schema": {"items": {"$ref": "http://127.0.0.1:9/x.json"}}},
            r"refers to 'http://127.0.0.1:9/x.json'",
        ),
    ],
)
def test_a_wrong_check_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    """Every mistake is found when the rubric is read, and says what was got and what is allowed."""
    with pytest.raises(RubricError, match=message):
        build_check(options)
