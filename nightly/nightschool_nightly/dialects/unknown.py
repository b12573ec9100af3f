"""Spans that look like a model call in a dialect nobody here reads. They are counted by who made them, never dropped in silence."""

from __future__ import annotations

import re

from nightschool_nightly.dialects.span import RawSpan
from nightschool_nightly.dialects.table import DIALECTS

_MODEL = re.compile(r"(^|[._])(model|model_?name|model_?id|deployment)$", re.IGNORECASE)
_TALK = re.compile(r"(^|[._])(prompts?|completions?|messages?|choices|(prompt|input|completion|output)_?tokens)\b", re.IGNORECASE)
_KINDS = tuple(dialect.kind for dialect in DIALECTS if dialect.kind is not None)
_MAX_NAME = 80
_NOT_IN_A_NAME = re.compile(r"[^\w.@/:+ -]", re.ASCII)  # the name is the client's, and is shown in reports and terminals


def unknown_dialect(span: RawSpan) -> str | None:
    """The instrumentation's name if `span`, which no dialect takes for a call, names both a model and what was said; else None."""
    attributes = span.attributes
    if any(name in attributes for name in _KINDS):
        return None
    if any(_MODEL.search(name) for name in attributes) and any(_TALK.search(name) for name in attributes):
        return _NOT_IN_A_NAME.sub("?", span.scope or "no scope")[:_MAX_NAME]
    return None
