"""Spans that look like a model call but that no dialect reads: counted by who made them, never dropped silently."""

from __future__ import annotations

import re

from nightschool_nightly.dialects.span import RawSpan
from nightschool_nightly.dialects.table import DIALECTS

_MODEL = re.compile(r"(^|[._])(model|model_?name|model_?id|deployment)$", re.IGNORECASE)
_TALK = re.compile(r"(^|[._])(prompts?|completions?|messages?|choices|(prompt|input|completion|output)_?tokens)\b", re.IGNORECASE)
_KINDS = tuple(dialect.kind for dialect in DIALECTS if dialect.kind is not None)
_MAX_NAME = 80  # characters; longer than any real scope, and short enough for a line of a report
_NOT_IN_A_NAME = re.compile(r"[^\w.@/:+ -]", re.ASCII)  # the client chooses the name, and reports and terminals show it


def unknown_dialect(span: RawSpan) -> str | None:
    """The instrumentation scope of `span`, a call in no dialect, if it names a model and what was said; else None."""
    attributes = span.attributes
    if any(name in attributes for name in _KINDS):
        return None
    if any(_MODEL.search(name) for name in attributes) and any(_TALK.search(name) for name in attributes):
        return _NOT_IN_A_NAME.sub("?", span.scope or "no scope")[:_MAX_NAME]
    return None
