"""The Vercel AI SDK (`experimental_telemetry`): a model call is the `do...` span inside the one of the app's call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool import semconv as names
from nightschool_nightly.dialects.dialect import Dialect
from nightschool_nightly.dialects.span import RawSpan
from nightschool_nightly.dialects.values import first_text, parsed, present, renamed, structured

_KIND = "ai.operationId"
# Not the outer spans (`ai.generateText` and so on), which repeat the same for all steps together.
_MODEL_CALLS = {
    "ai.generateText.doGenerate",
    "ai.streamText.doStream",
    "ai.generateObject.doGenerate",
    "ai.streamObject.doStream",
}
_RENAMED = {
    "ai.model.provider": names.GEN_AI_PROVIDER_NAME,
    "ai.model.id": names.GEN_AI_REQUEST_MODEL,
    "ai.response.id": names.GEN_AI_RESPONSE_ID,
    "ai.response.model": names.GEN_AI_RESPONSE_MODEL,
    "ai.settings.temperature": names.GEN_AI_REQUEST_TEMPERATURE,
    "ai.settings.topP": names.GEN_AI_REQUEST_TOP_P,
    "ai.settings.maxOutputTokens": names.GEN_AI_REQUEST_MAX_TOKENS,
    "ai.settings.maxTokens": names.GEN_AI_REQUEST_MAX_TOKENS,
    "ai.settings.seed": names.GEN_AI_REQUEST_SEED,
    "ai.settings.stopSequences": names.GEN_AI_REQUEST_STOP_SEQUENCES,
    "ai.usage.inputTokens": names.GEN_AI_USAGE_INPUT_TOKENS,
    "ai.usage.promptTokens": names.GEN_AI_USAGE_INPUT_TOKENS,
    "ai.usage.outputTokens": names.GEN_AI_USAGE_OUTPUT_TOKENS,
    "ai.usage.completionTokens": names.GEN_AI_USAGE_OUTPUT_TOKENS,
    "ai.usage.cachedInputTokens": names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
    "ai.usage.reasoningTokens": names.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS,
}
_METADATA = "ai.telemetry.metadata."


def _read(span: RawSpan) -> dict[str, Any]:
    """What the span says in the SDK's names."""
    attributes = span.attributes
    found: dict[str, Any] = {}
    if user := first_text(attributes.get(_METADATA + "userId"), attributes.get(_METADATA + "user_id")):
        found[names.SUBJECT] = user
    if session := first_text(*(attributes.get(_METADATA + key) for key in ("sessionId", "session_id", "threadId", "chatId"))):
        found[names.GEN_AI_CONVERSATION_ID] = session
    operation = first_text(attributes.get(_KIND))
    if operation in _MODEL_CALLS:
        return found | _model_call(attributes)
    return found | _tool_run(attributes) if operation == "ai.toolCall" else found


def _model_call(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found = {names.GEN_AI_OPERATION_NAME: "chat", **renamed(attributes, _RENAMED)}
    if (messages := structured(attributes.get("ai.prompt.messages"))) is not None:
        found[names.GEN_AI_INPUT_MESSAGES] = messages
    tools = attributes.get("ai.prompt.tools")
    if isinstance(tools, list):
        found[names.GEN_AI_TOOL_DEFINITIONS] = [tool for text in tools if isinstance(tool := structured(text), dict)]
    if parts := _answer(attributes):
        found[names.GEN_AI_OUTPUT_MESSAGES] = [{"role": "assistant", "parts": parts}]
    if reason := first_text(attributes.get("ai.response.finishReason")):
        found[names.GEN_AI_RESPONSE_FINISH_REASONS] = [reason]
    return found


def _answer(attributes: Mapping[str, Any]) -> list[Any]:
    """The parts of the answer in the order the SDK gives them: reasoning, text, tool calls."""
    parts: list[Any] = []
    if reasoning := first_text(attributes.get("ai.response.reasoning")):
        parts.append({"type": "reasoning", "content": reasoning})
    if text := first_text(attributes.get("ai.response.text"), attributes.get("ai.response.object")):
        parts.append({"type": "text", "content": text})
    calls = structured(attributes.get("ai.response.toolCalls"))
    if isinstance(calls, list):
        parts += [{**call, "type": "tool_call"} if isinstance(call, dict) else call for call in calls]
    return parts


def _tool_run(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return present(
        {
            names.GEN_AI_OPERATION_NAME: "execute_tool",
            names.GEN_AI_TOOL_NAME: attributes.get("ai.toolCall.name"),
            names.GEN_AI_TOOL_CALL_ID: attributes.get("ai.toolCall.id"),
            names.GEN_AI_TOOL_CALL_ARGUMENTS: attributes.get("ai.toolCall.args"),
            names.GEN_AI_TOOL_CALL_RESULT: parsed(attributes.get("ai.toolCall.result")),
        }
    )


VERCEL = Dialect(markers=frozenset({"ai"}), read=_read, kind=_KIND)
