"""Deterministic checks of an answer's text: the `check` items of a rubric.

Each returns whether the answer passes. All compare after stripping surrounding white space; `ignore_case` is off unless said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nightschool.errors import RubricError

Check = Callable[[str], bool]
# A pattern from a rubric runs on every rollout; a bounded answer bounds what a bad pattern can cost.
_MAX_CHECKED_CHARS = 100_000


def build_check(options: Mapping[str, Any]) -> Check:
    """The check that `options` (a rubric item without its name, kind and weight) describes; `RubricError` if it is none."""
    kind = options.get("check")
    if not isinstance(kind, str) or kind not in _BUILDERS:
        raise RubricError(f"check is {kind!r}; allowed are {', '.join(sorted(_BUILDERS))}")
    builder, allowed = _BUILDERS[kind]
    if unknown := sorted(set(options) - {"check", *allowed}):
        raise RubricError(f"check {kind!r} has the unknown option {unknown[0]!r}; allowed are {', '.join(sorted(allowed))}")
    return builder(options)


def normal(text: str, *, ignore_case: bool) -> str:
    """`text` without surrounding white space, case-folded if asked."""
    return text.strip().casefold() if ignore_case else text.strip()


def _exact(options: Mapping[str, Any]) -> Check:
    fold = _option(options, "ignore_case", bool, False)
    value = normal(_option(options, "value", str), ignore_case=fold)
    return lambda answer: normal(answer, ignore_case=fold) == value


def _one_of(options: Mapping[str, Any]) -> Check:
    fold = _option(options, "ignore_case", bool, False)
    values = _option(options, "values", list)
    if not values or not all(isinstance(value, str) for value in values):
        raise RubricError(f"values is {values!r}; it must be a list of at least one string")
    allowed = {normal(value, ignore_case=fold) for value in values}
    return lambda answer: normal(answer, ignore_case=fold) in allowed


def _regex(options: Mapping[str, Any]) -> Check:
    pattern = _option(options, "pattern", str)
    flags = re.IGNORECASE if _option(options, "ignore_case", bool, False) else re.NOFLAG
    try:
        compiled = re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise RubricError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    return lambda answer: compiled.search(answer[:_MAX_CHECKED_CHARS]) is not None


def _length(options: Mapping[str, Any]) -> Check:
    low, high = _option(options, "min_chars", int, 0), _option(options, "max_chars", int, _MAX_CHECKED_CHARS)
    if not 0 <= low <= high:
        raise RubricError(f"min_chars is {low} and max_chars {high}; they must be 0 <= min_chars <= max_chars")
    return lambda answer: low <= len(answer.strip()) <= high


def _json_schema(options: Mapping[str, Any]) -> Check:
    import jsonschema
    import referencing.jsonschema

    schema = _option(options, "schema", dict)
    try:
        validator_class = jsonschema.validators.validator_for(schema)
        validator_class.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise RubricError(f"schema is not a JSON schema: {error.message}") from None
    # Without its own registry the library would fetch what a schema refers to, in the middle of a night.
    validator = validator_class(schema, registry=referencing.Registry())
    resource = referencing.Resource.from_contents(schema, default_specification=referencing.jsonschema.DRAFT202012)
    resolver = referencing.Registry().with_resource("", resource).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise RubricError(f"schema refers to {reference!r}, which it does not hold; put it under $defs") from None

    def check(answer: str) -> bool:
        try:
            return bool(validator.is_valid(json.loads(answer)))
        except (ValueError, RecursionError):
            return False

    return check


def _references(schema: Any) -> Iterator[str]:
    """Every `$ref` in a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)


def _option(options: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = options.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RubricError(f"{name} is {value!r}; it must be a {kind.__name__}")
    return value


_BUILDERS: dict[Any, tuple[Callable[[Mapping[str, Any]], Check], set[str]]] = {
    "exact": (_exact, {"value", "ignore_case"}),
    "one_of": (_one_of, {"values", "ignore_case"}),
    "regex": (_regex, {"pattern", "ignore_case"}),
    "length": (_length, {"min_chars", "max_chars"}),
    "json_schema": (_json_schema, {"schema"}),
}
