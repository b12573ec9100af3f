"""OpenInference (Arize Phoenix): flattened messages, and annotations, which are outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nightschool import semconv as names
from nightschool_nightly.dialects.dialect import Dialect
from nightschool_nightly.dialects.feedback import Feedback
from nightschool_nightly.dialects.openai_json import read_chat_request, read_chat_response
from nightschool_nightly.dialects.span import RawSpan, unflatten
from nightschool_nightly.dialects.values import first_text, renamed, structured

_KIND = "openinference.span.kind"
_HIDDEN = "__REDACTED__"  # what its switches that hide content put in its place
_RENAMED = {
    "llm.system": names.GEN_AI_PROVIDER_NAME,
    "llm.model_name": names.GEN_AI_RESPONSE_MODEL,
    "llm.token_count.prompt": names.GEN_AI_USAGE_INPUT_TOKENS,
    "llm.token_count.completion": names.GEN_AI_USAGE_OUTPUT_TOKENS,
    "llm.token_count.prompt_details.cache_read": names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
    "llm.token_count.completion_details.reasoning": names.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS,
}
_ANNOTATOR_KINDS = {"HUMAN": "human", "LLM": "llm", "CODE": "code"}
# Attribute prefix -> the name inside it, and what it is about.
_ANNOTATIONS = (
    ("annotations", "annotation", "span"),
    ("evaluations", "evaluation", "span"),
    ("trace.annotations", "annotation", "trace"),
    ("trace.evaluations", "evaluation", "trace"),
    ("session.annotations", "annotation", "session"),
    ("session.evaluations", "evaluation", "session"),
)
_ANNOTATED = tuple(f"{prefix}." for prefix, _, _ in _ANNOTATIONS)


def _read(span: RawSpan) -> dict[str, Any]:
    """What the span says in OpenInference's names; only the kinds LLM and TOOL are calls."""
    match span.attributes.get(_KIND):
        case "LLM":
            return _model_call(span.attributes)
        case "TOOL":
            return _tool_run(span.attributes)
        case _:
            return {}


def _model_call(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found = {names.GEN_AI_OPERATION_NAME: "chat", **renamed(attributes, _RENAMED)}
    parameters = structured(attributes.get("llm.invocation_parameters"))
    if isinstance(parameters, dict):
        found |= read_chat_request(parameters)
    for new, old in ((names.GEN_AI_INPUT_MESSAGES, "llm.input_messages"), (names.GEN_AI_OUTPUT_MESSAGES, "llm.output_messages")):
        messages = unflatten(attributes, old)
        if isinstance(messages, list):
            found[new] = [_message(item) for item in messages]
    tools = unflatten(attributes, "llm.tools")
    if isinstance(tools, list):
        schemas = [structured(item["tool"].get("json_schema")) for item in tools if _is_tool(item)]
        found[names.GEN_AI_TOOL_DEFINITIONS] = [schema for schema in schemas if isinstance(schema, dict)]
    if reason := first_text(attributes.get("llm.finish_reason")):
        found[names.GEN_AI_RESPONSE_FINISH_REASONS] = [reason]
    # There is no name for the response id; the raw answer, where it was recorded too, has it.
    answer = read_chat_response(structured(attributes.get("output.value")))
    return {**{name: value for name, value in answer.items() if name != names.GEN_AI_OUTPUT_MESSAGES}, **found}


def _is_tool(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("tool"), dict)


def _message(item: Any) -> Any:
    message = item.get("message") if isinstance(item, dict) else None
    if not isinstance(message, dict) or message.get("content") == _HIDDEN:
        return None  # a message that cannot be read: then the whole conversation is not known
    found = {"content": None, **{name: value for name, value in message.items() if name not in ("contents", "tool_calls")}}
    if isinstance(message.get("contents"), list):
        found["content"] = [_part(part) for part in message["contents"]]
    if isinstance(message.get("tool_calls"), list):
        calls = [call.get("tool_call") if isinstance(call, dict) else None for call in message["tool_calls"]]
        found["tool_calls"] = calls
    return found


def _part(part: Any) -> Any:
    content = part.get("message_content") if isinstance(part, dict) else None
    if not isinstance(content, dict):
        return None
    if content.get("type") == "image" and isinstance(content.get("image"), dict):
        image = content["image"].get("image")
        return {"type": "image_url", "image_url": {"url": image.get("url") if isinstance(image, dict) else None}}
    return content


def _tool_run(attributes: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        names.GEN_AI_OPERATION_NAME: "execute_tool",
        names.GEN_AI_TOOL_NAME: attributes.get("tool.name"),
        names.GEN_AI_TOOL_CALL_ID: attributes.get("tool_call.id", attributes.get("tool.id")),
        names.GEN_AI_TOOL_CALL_ARGUMENTS: attributes.get("input.value"),  # not `tool.parameters`, which is the schema
        names.GEN_AI_TOOL_CALL_RESULT: attributes.get("output.value"),
    }
    return {name: value for name, value in values.items() if value not in (None, _HIDDEN)}


def _feedback(span: RawSpan) -> Iterator[Feedback]:
    """The annotations on a span of any kind: judgements about the span, its trace or its session."""
    if not any(name.startswith(_ANNOTATED) for name in span.attributes):
        return
    for prefix, inner, about in _ANNOTATIONS:
        items = unflatten(span.attributes, prefix)
        for item in items if isinstance(items, list) else ():
            given = item.get(inner) if isinstance(item, dict) else None
            name = first_text(given.get("name")) if isinstance(given, dict) else None
            if not isinstance(given, dict) or name is None:
                continue
            yield Feedback(
                name=name,
                value=given.get("score", given.get("label")),
                about=about,
                comment=first_text(given.get("explanation")),
                source_kind=_ANNOTATOR_KINDS.get(str(given.get("annotator_kind")).upper(), "system"),
                source_id=first_text(given.get("identifier")) or "",
                metadata=_metadata(given),
            )


def _metadata(given: Mapping[str, Any]) -> dict[str, Any]:
    metadata = structured(given.get("metadata"))
    metadata = metadata if isinstance(metadata, dict) else {}
    return {**metadata, "label": given["label"]} if "score" in given and "label" in given else metadata


OPENINFERENCE = Dialect(markers=frozenset({"openinference"}), read=_read, feedback=_feedback, kind=_KIND)
