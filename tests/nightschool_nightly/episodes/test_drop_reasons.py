"""The table of reasons: what a night counts is in it, all of it can be counted, and each entry says what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nightschool_nightly
from nightschool_nightly.episodes.reasons import DropReason, reason_of

PACKAGE = Path(nightschool_nightly.__file__).parent
TABLE = PACKAGE / "episodes" / "reasons.py"


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """Every file of the package but the table itself."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != TABLE:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_reasons_are_pinned() -> None:
    """Reports and dashboards name these reasons; a new one is a deliberate change."""
    assert [reason.value for reason in DropReason] == [
        "record-without-tenant",
        "undecodable-span-record",
        "undecodable-log-record",
        "undecodable-outcome-record",
        "unknown-dialect",
        "erased-span",
        "erased-event",
        "erased-outcome",
        "duplicate-span",
        "duplicate-event",
        "duplicate-outcome",
        "call-recorded-twice",
        "event-without-call",
        "event-id-used-twice",
        "outcome-without-trace",
        "orphaned-outcome",
        "ambiguous-outcome",
        "retracted-outcome",
        "call-without-content",
        "token-ids-of-redacted-call",
        "edit-not-measured",
        "seen-by-an-earlier-night",
        "doctor",
        "task-without-rubric",
        "answer-is-not-text",
        "message-is-not-text",
        "completion-without-token-ids",
        "refused-by-chat-template",
        "no-outcome",
        "outcome-without-text",
        "unread-outcome",
        "outcome-not-settled",
        "conflicting-outcomes",
        "request-parameter-refused",
        "request-parameter-not-replayed",
        "prompt-too-long",
        "duplicate-prompt",
        "prompt-trained-before",
        "over-share-of-one-user",
        "left-for-a-later-night",
        "tokens-of-another-tokenizer",
    ]


def test_every_reason_is_explained() -> None:
    """Whatever a night leaves out, a person can read why and what to do, in one line of each."""
    for reason in DropReason:
        assert reason.meaning and reason.remedy
        assert "\n" not in reason.meaning + reason.remedy


def test_every_reason_is_used() -> None:
    """An entry that nothing counts would never be seen."""
    used = {
        node.attr
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "DropReason"
    }
    assert used == {reason.name for reason in DropReason}


def test_what_is_counted_comes_from_the_table() -> None:
    """Code and SQL name reasons by the table: no key of a count, and no value that SQL selects, is spelled as text."""
    in_sql = re.compile(r"'[a-z]+(?:-[a-z]+)+'")
    spelled = []
    for path, tree in sources():
        for node in ast.walk(tree):
            match node:
                case ast.Subscript(
                    value=ast.Attribute(attr="dropped") | ast.Name(id="dropped"), slice=ast.Constant() | ast.JoinedStr()
                ):
                    spelled.append(f"{path}:{node.lineno}")
                case ast.Constant(value=str(text)) if "SELECT" in text and in_sql.search(text):
                    spelled.append(f"{path}:{node.lineno}")
                case ast.Constant(value=str(text)) if text in set(DropReason) - {DropReason.DOCTOR}:
                    spelled.append(f"{path}:{node.lineno}")
    assert not spelled


@pytest.mark.parametrize("reason", DropReason)
def test_a_counted_name_leads_to_its_reason(reason: DropReason) -> None:
    """Also where it says in brackets who it was."""
    assert reason_of(str(reason)) is reason and reason_of(f"{reason} (some scope)") is reason
