"""OpenTelemetry GenAI conventions up to 1.36: `gen_ai.system`, and each message an event of its own.

The events are events of the span (azure-ai-inference) or log records that name it
(opentelemetry-instrumentation-openai-v2). Still older packages wrote the whole prompt and completion as JSON into
`gen_ai.prompt` and `gen_ai.completion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nightschool import semconv as names
from nightschool_nightly.dialects.dialect import Dialect
from nightschool_nightly.dialects.span import Event, RawSpan
from nightschool_nightly.dialects.values import first_text, is_whole, parsed, structured

SYSTEM = "gen_ai.system"
CHOICE = "gen_ai.choice"
INFERENCE_DETAILS = "gen_ai.client.inference.operation.details"
MESSAGE_EVENTS = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
EVENT_NAMES = {*MESSAGE_EVENTS, CHOICE, INFERENCE_DETAILS}
_RENAMED = {
    SYSTEM: names.GEN_AI_PROVIDER_NAME,
    "gen_ai.usage.prompt_tokens": names.GEN_AI_USAGE_INPUT_TOKENS,
    "gen_ai.usage.completion_tokens": names.GEN_AI_USAGE_OUTPUT_TOKENS,
    "gen_ai.openai.request.seed": names.GEN_AI_REQUEST_SEED,
}
_REDACTION = "nightschool.redaction."  # on an event too: a text that was redacted no longer fits the recorded token ids
_PROMPTS = ("gen_ai.prompt", "gen_ai.content.prompt")
_COMPLETIONS = ("gen_ai.completion", "gen_ai.content.completion")
_OLD = {*_RENAMED, *_PROMPTS, *_COMPLETIONS}


def _read(span: RawSpan) -> dict[str, Any]:
    """What the span and its events say under their old names."""
    if not span.events and _OLD.isdisjoint(span.attributes):
        return {}
    found = {new: span.attributes[old] for old, new in _RENAMED.items() if old in span.attributes}
    found |= read_message_events(span.events)
    whole = [span.attributes, *(event.attributes for event in span.events)]
    for new, olds, role in (
        (names.GEN_AI_INPUT_MESSAGES, _PROMPTS, "user"),
        (names.GEN_AI_OUTPUT_MESSAGES, _COMPLETIONS, "assistant"),
    ):
        if new not in found and (messages := _whole(whole, olds, role)):
            found[new] = messages
    if found and names.GEN_AI_OPERATION_NAME not in span.attributes and names.GEN_AI_OUTPUT_MESSAGES in found:
        found[names.GEN_AI_OPERATION_NAME] = "chat"
    return found


def read_message_events(events: Sequence[Event]) -> dict[str, Any]:
    """What the message events of one call say, in the order they came."""
    found = {name: value for event in events for name, value in event.attributes.items() if name.startswith(_REDACTION)}
    messages = [message for event in events if (message := _message(event)) is not None]
    choices = [content for event in events if event.name == CHOICE and isinstance(content := _content(event), dict)]
    for event in events:
        if event.name == INFERENCE_DETAILS:
            found |= {name: value for name, value in event.attributes.items() if value is not None}
    if redacted := next((version for event in events if (version := event.attributes.get(names.REDACTION_VERSION))), None):
        found[names.REDACTION_VERSION] = redacted  # of one event is enough: token ids no longer fit
    if messages:
        found.setdefault(names.GEN_AI_INPUT_MESSAGES, messages)
    if choices:
        choices.sort(key=lambda choice: choice["index"] if is_whole(choice.get("index")) else 0)
        found.setdefault(names.GEN_AI_OUTPUT_MESSAGES, [_answer(choice) for choice in choices])
        if reasons := [reason for choice in choices if (reason := first_text(choice.get("finish_reason")))]:
            found.setdefault(names.GEN_AI_RESPONSE_FINISH_REASONS, reasons)
    return found


def _message(event: Event) -> Any:
    role = MESSAGE_EVENTS.get(event.name)
    if role is None:
        return None
    content = _content(event)
    return {"role": role, "content": None, **content} if isinstance(content, dict) else {"role": role, "content": content}


def _content(event: Event) -> Any:
    """What an event says: the body of a log record; of a span's event JSON text in an attribute, or its attributes."""
    if event.body is not None:
        return parsed(event.body)
    if "gen_ai.event.content" in event.attributes:
        return parsed(event.attributes["gen_ai.event.content"])
    return {name.removeprefix("gen_ai."): value for name, value in event.attributes.items() if name != SYSTEM}


def _answer(choice: Mapping[str, Any]) -> Any:
    """The message of a choice; before version 1.28 its fields were beside the finish reason."""
    message = structured(choice.get("message"))
    if isinstance(message, str):
        message = {"content": message}
    if not isinstance(message, dict):
        message = {name: value for name, value in choice.items() if name not in ("index", "finish_reason", "message")}
    return {"role": "assistant", "content": None, **message}


def _whole(places: Sequence[Mapping[str, Any]], keys: Sequence[str], role: str) -> list[Any] | None:
    """Messages written as one attribute, as JSON or as plain text."""
    value = next((place[key] for place in places for key in keys if key in place), None)
    if value is None or value == "":
        return None
    messages = structured(value)
    if isinstance(messages, dict):
        messages = [messages]
    if isinstance(messages, list):
        return [{"role": role, **message} if isinstance(message, dict) else message for message in messages]
    return [{"role": role, "content": value}] if isinstance(value, str) else None


OTEL_1_36 = Dialect(markers=frozenset({"gen_ai"}), read=_read, kind=names.GEN_AI_OPERATION_NAME)
