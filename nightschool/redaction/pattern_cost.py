"""Whether a pattern that a user wrote is safe to run on any text.

Python's engine tries every way to match, so `(a+)+b` practically never ends on forty letters. The number of ways is
bounded here, before the pattern is run: the product over parts in a row, the sum over alternatives, the power over
repeats. Possessive quantifiers and atomic groups (Python 3.11) have one way each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# The public module gives only compiled patterns; this is its parser, unchanged since Python 3.11.
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from nightschool.errors import ConfigError, shown

MAX_LENGTH = 500
MAX_WAYS = 1_000  # to match at one place; all places of a text are tried
MAX_WIDTH = 2_000  # characters of the longest text that a pattern may match
_MANY = MAX_WAYS + 1


def compile_safely(text: str) -> re.Pattern[str]:
    """The compiled pattern; `ConfigError` says what is wrong with it and what to write in its place."""
    if not 1 <= len(text) <= MAX_LENGTH:
        raise ConfigError(f"a pattern of {len(text)} characters; allowed are 1 to {MAX_LENGTH}")
    try:
        compiled, parsed = re.compile(text), _parser.parse(text)
        ways = _ways(parsed)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"pattern {shown(text)} is not a regular expression: {error}") from None
    if compiled.match("") or parsed.getwidth()[0] == 0:
        raise ConfigError(
            f"pattern {shown(text)} matches the empty text, so it would match everywhere; make a part of it required"
        )
    if ways > MAX_WAYS or parsed.getwidth()[1] > MAX_WIDTH:
        raise ConfigError(
            f"pattern {shown(text)} can match in too many ways and would stop the collector on a hostile text;"
            " bound its repeats, {1,20} instead of +, and make them possessive, {1,20}+"
        )
    return compiled


def _ways(parsed: Iterable[tuple[Any, Any]]) -> int:
    """An upper bound, at most `_MANY`, of the number of ways in which a parsed sequence can match at one place."""
    total = 1
    for op, value in parsed:
        total = min(total * _ways_of(op, value), _MANY)
    return total


def _ways_of(op: Any, value: Any) -> int:
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        least, most, inner = value
        return _MANY if most == ops.MAXREPEAT else _repeated(_ways(inner), int(least), int(most))
    if op is ops.POSSESSIVE_REPEAT:
        # It matches in one way, but all ways of its inner part are tried, and without an upper bound up to the end of
        # the text.
        return 1 if _ways(value[2]) == 1 and value[1] != ops.MAXREPEAT else _MANY
    if op is ops.BRANCH:
        return min(sum(_ways(branch) for branch in value[1]), _MANY)
    if op is ops.SUBPATTERN:
        return _ways(value[-1])
    if op is ops.ATOMIC_GROUP:
        return _ways(value)
    if op in (ops.ASSERT, ops.ASSERT_NOT):
        return _ways(value[1])
    return _MANY if op in (ops.GROUPREF, ops.GROUPREF_EXISTS) else 1


def _repeated(inner: int, least: int, most: int) -> int:
    if inner == 1:
        return min(most - least + 1, _MANY)
    total = 0
    for times in range(least, most + 1):
        total += min(inner**times, _MANY) if times < 64 else _MANY
        if total >= _MANY:
            return _MANY
    return total
