"""Whether a pattern of a user's own is safe to run on any text.

Python's engine tries every way to match, so `(a+)+b` takes longer than the age of the universe on forty letters. The number of
ways is bounded here before the pattern is ever run: product over what follows one another, sum over alternatives, power over
repeats. Possessive quantifiers and atomic groups (Python 3.11) have one way each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# The public module shows only compiled patterns; this is the parser behind it, stable since Python 3.11.
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from nightschool.errors import ConfigError, shown

MAX_LENGTH = 500
MAX_WAYS = 1_000
MAX_WIDTH = 2_000  # the longest text a pattern may match: every place of a text is tried
_MANY = MAX_WAYS + 1


def compile_safely(text: str) -> re.Pattern[str]:
    """The compiled pattern; `ConfigError` says what is wrong with it and what to write instead."""
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
    """An upper bound, cut at `_MANY`, of the ways in which a parsed sequence can match at one place."""
    total = 1
    for op, value in parsed:
        total = min(total * _ways_of(op, value), _MANY)
    return total


def _ways_of(op: Any, value: Any) -> int:
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        least, most, inner = value
        return _MANY if most == ops.MAXREPEAT else _repeated(_ways(inner), int(least), int(most))
    if op is ops.POSSESSIVE_REPEAT:
        # One way out, but what is repeated inside is tried in all of its ways, and + without a bound up to the end of the text.
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
