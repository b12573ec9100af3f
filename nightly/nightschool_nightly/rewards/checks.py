"""Items of kind "check": deterministic tests of an answer's text.

Every check ignores white space around the answer. `ignore_case` is false by default.

To add a check: write a function that takes the item's options and returns a `Check`, and add one line to `CHECKS`. A
check is deterministic, touches nothing outside, and its cost is bounded whatever the answer is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nightschool.errors import RubricError
from nightschool_nightly.rewards.items import Answer, Prompt
from nightschool_nightly.rewards.options import read_option, refuse_unknown

Test = Callable[[str], bool]


def _cannot_tell(beginning: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Check:
    """A test of an answer's text."""

    passes: Test
    fails_already: Test = _cannot_tell
    """Whether an answer that begins so fails however it goes on."""


# A pattern from a rubric runs on every rollout, and some patterns take time that grows fast with the text.
_MAX_CHECKED_CHARS = 100_000


@dataclass(frozen=True, slots=True)
class CheckCriterion:
    """The text of the answer passes a check. It never needs an outcome, so it can always decide."""

    check: Check
    outcome_names: tuple[str, ...] = ()

    def passes(self, prompt: Prompt, answer: Answer) -> bool | None:
        return self.check.passes(answer.text)

    def fails_already(self, prompt: Prompt, beginning: str) -> bool:
        return self.check.fails_already(beginning)


def load_check(options: Mapping[str, Any]) -> CheckCriterion:
    """The criterion that an item's options describe; `RubricError` if they do not describe one."""
    return CheckCriterion(build_check(options))


def build_check(options: Mapping[str, Any]) -> Check:
    """The check named by the option `check`, built from the other options; `RubricError` if they do not fit it."""
    name = options.get("check")
    if not isinstance(name, str) or name not in CHECKS:
        found = "missing" if name is None else repr(name)
        raise RubricError(f"check is {found}; allowed are {', '.join(sorted(CHECKS))}")
    known = CHECKS[name]
    own = {option: value for option, value in options.items() if option != "check"}
    refuse_unknown(f"check {name!r}", own, known.options)
    return known.build(own)


def normalize(text: str, *, ignore_case: bool) -> str:
    """`text` without surrounding white space, and without upper case if asked: what two texts are compared by."""
    return text.strip().casefold() if ignore_case else text.strip()


def may_become(beginning: str, text: str, *, ignore_case: bool) -> bool:
    """Whether an answer that begins so may still equal the normalized `text`.

    The last character of a beginning may be a part of one, which is written as U+FFFD.
    """
    begun = (beginning.casefold() if ignore_case else beginning).lstrip().rstrip("\ufffd")
    return text.startswith(begun) or begun.strip() == text


# --- the checks ---------------------------------------------------------------------------------------------------------
def _exact(options: Mapping[str, Any]) -> Check:
    ignore_case = read_option(options, "ignore_case", bool, False)
    return _is_one_of((read_option(options, "value", str),), ignore_case=ignore_case)


def _one_of(options: Mapping[str, Any]) -> Check:
    ignore_case = read_option(options, "ignore_case", bool, False)
    values = read_option(options, "values", list, must_be="a list of at least one text")
    if not values or not all(isinstance(value, str) for value in values):
        raise RubricError(f"values is {values!r}; it must be a list of at least one text")
    return _is_one_of(values, ignore_case=ignore_case)


def _is_one_of(values: Iterable[str], *, ignore_case: bool) -> Check:
    allowed = {normalize(value, ignore_case=ignore_case) for value in values}

    def fails_already(beginning: str) -> bool:
        return not any(may_become(beginning, value, ignore_case=ignore_case) for value in allowed)

    return Check(lambda text: normalize(text, ignore_case=ignore_case) in allowed, fails_already)


def _regex(options: Mapping[str, Any]) -> Check:
    pattern = read_option(options, "pattern", str)
    flags = re.IGNORECASE if read_option(options, "ignore_case", bool, False) else re.NOFLAG
    try:
        compiled = re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise RubricError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    return Check(lambda text: compiled.search(text[:_MAX_CHECKED_CHARS]) is not None)


def _length(options: Mapping[str, Any]) -> Check:
    low = read_option(options, "min_chars", int, 0)
    high = read_option(options, "max_chars", int, _MAX_CHECKED_CHARS)
    if not 0 <= low <= high:
        raise RubricError(f"min_chars is {low} and max_chars {high}; they must be 0 <= min_chars <= max_chars")
    return Check(lambda text: low <= len(text.strip()) <= high, lambda beginning: len(beginning.strip()) > high)


def _json_schema(options: Mapping[str, Any]) -> Check:
    import jsonschema
    import referencing.jsonschema

    schema = read_option(options, "schema", dict)
    try:
        validator_class = jsonschema.validators.validator_for(schema)
        validator_class.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise RubricError(f"schema is not a JSON schema: {error.message}") from None
    # Without a registry of its own the library would fetch what a schema refers to over the network, during a night.
    validator = validator_class(schema, registry=referencing.Registry())
    resource = referencing.Resource.from_contents(schema, default_specification=referencing.jsonschema.DRAFT202012)
    resolver = referencing.Registry().with_resource("", resource).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise RubricError(f"schema refers to {reference!r}, which is not in it; put it under $defs") from None

    def check(text: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(text)))
        except (ValueError, RecursionError):  # not JSON, or nested too deeply to read or to check
            return False

    return Check(check)


def _references(schema: Any) -> Iterator[str]:
    """Every `$ref` in a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)


class KnownCheck(NamedTuple):
    """A check that a rubric may name."""

    build: Callable[[Mapping[str, Any]], Check]
    options: frozenset[str]
    """Keys it may have in the TOML table, beside those every item has."""


CHECKS: Mapping[str, KnownCheck] = {
    "exact": KnownCheck(_exact, frozenset({"value", "ignore_case"})),
    "one_of": KnownCheck(_one_of, frozenset({"values", "ignore_case"})),
    "regex": KnownCheck(_regex, frozenset({"pattern", "ignore_case"})),
    "length": KnownCheck(_length, frozenset({"min_chars", "max_chars"})),
    "json_schema": KnownCheck(_json_schema, frozenset({"schema"})),
}
