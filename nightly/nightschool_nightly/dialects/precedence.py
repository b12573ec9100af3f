"""Everything that a span says, under the names of the GenAI conventions.

`nightschool.*` comes before `gen_ai.*`, these before the names of vendors, and those before general names. A dialect
only fills in what the ones before it left unsaid, so a span that speaks two of them loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool import semconv as names
from nightschool_nightly.dialects.span import RawSpan
from nightschool_nightly.dialects.table import DIALECTS
from nightschool_nightly.dialects.values import first_text

_OURS = "nightschool."
_OUR_SCOPES = {"nightschool", "nightschool_serving"}
# The attributes of the GenAI conventions that episodes are made of; the others stay in the stream.
_KEPT = {
    names.GEN_AI_OPERATION_NAME,
    names.GEN_AI_PROVIDER_NAME,
    names.GEN_AI_REQUEST_MODEL,
    names.GEN_AI_REQUEST_TEMPERATURE,
    names.GEN_AI_REQUEST_TOP_P,
    names.GEN_AI_REQUEST_TOP_K,
    names.GEN_AI_REQUEST_FREQUENCY_PENALTY,
    names.GEN_AI_REQUEST_PRESENCE_PENALTY,
    names.GEN_AI_REQUEST_MAX_TOKENS,
    names.GEN_AI_REQUEST_SEED,
    names.GEN_AI_REQUEST_STOP_SEQUENCES,
    names.GEN_AI_RESPONSE_ID,
    names.GEN_AI_RESPONSE_MODEL,
    names.GEN_AI_RESPONSE_FINISH_REASONS,
    names.GEN_AI_USAGE_INPUT_TOKENS,
    names.GEN_AI_USAGE_OUTPUT_TOKENS,
    names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
    names.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS,
    names.GEN_AI_CONVERSATION_ID,
    names.GEN_AI_INPUT_MESSAGES,
    names.GEN_AI_OUTPUT_MESSAGES,
    names.GEN_AI_SYSTEM_INSTRUCTIONS,
    names.GEN_AI_TOOL_DEFINITIONS,
    names.GEN_AI_TOOL_NAME,
    names.GEN_AI_TOOL_CALL_ID,
    names.GEN_AI_TOOL_CALL_ARGUMENTS,
    names.GEN_AI_TOOL_CALL_RESULT,
    names.ERROR_TYPE,
}
# General names, for spans of any kind.
_GENERAL = {
    names.SUBJECT: ("user.id", "enduser.id", "enduser.pseudo.id"),
    names.GEN_AI_CONVERSATION_ID: ("session.id",),
}


def normalize(span: RawSpan) -> dict[str, Any]:
    """The attributes of `span` in the conventions' names, messages in any shape that `read_messages` knows."""
    found = keep(span.attributes)
    if span.scope in _OUR_SCOPES and not span.events:
        return found  # our own tracer writes no other names
    families = {name.partition(".")[0] for name in span.attributes}
    for dialect in DIALECTS:
        if dialect.read is not None and not dialect.markers.isdisjoint(families):
            fill_in(found, keep(dialect.read(span)))
    for name, olds in _GENERAL.items():
        if name not in found and (value := first_text(*(span.attributes.get(old) for old in olds))):
            found[name] = value
    return found


def keep(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that episodes are made of."""
    return {name: value for name, value in attributes.items() if name in _KEPT or name.startswith(_OURS)}


def fill_in(found: dict[str, Any], later: Mapping[str, Any]) -> None:
    """Add to `found` the attributes that it does not have yet."""
    for name, value in later.items():
        found.setdefault(name, value)
