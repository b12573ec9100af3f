"""Requests and answers of chat APIs as JSON: several dialects record them whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool import semconv as names
from nightschool_nightly.dialects.values import first_text, renamed

_REQUEST = {
    "model": names.GEN_AI_REQUEST_MODEL,
    "temperature": names.GEN_AI_REQUEST_TEMPERATURE,
    "top_p": names.GEN_AI_REQUEST_TOP_P,
    "top_k": names.GEN_AI_REQUEST_TOP_K,
    "frequency_penalty": names.GEN_AI_REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": names.GEN_AI_REQUEST_PRESENCE_PENALTY,
    "max_completion_tokens": names.GEN_AI_REQUEST_MAX_TOKENS,  # where both are sent, servers take this one
    "max_tokens": names.GEN_AI_REQUEST_MAX_TOKENS,
    "seed": names.GEN_AI_REQUEST_SEED,
    "stop": names.GEN_AI_REQUEST_STOP_SEQUENCES,
    "messages": names.GEN_AI_INPUT_MESSAGES,
    "tools": names.GEN_AI_TOOL_DEFINITIONS,
}
_USAGE = {
    "prompt_tokens": names.GEN_AI_USAGE_INPUT_TOKENS,
    "completion_tokens": names.GEN_AI_USAGE_OUTPUT_TOKENS,
    "input_tokens": names.GEN_AI_USAGE_INPUT_TOKENS,
    "output_tokens": names.GEN_AI_USAGE_OUTPUT_TOKENS,
    "input": names.GEN_AI_USAGE_INPUT_TOKENS,
    "output": names.GEN_AI_USAGE_OUTPUT_TOKENS,
    "cache_read_input_tokens": names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS,
}


def read_chat_request(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the body of a chat request says, or the part of it that a dialect records."""
    others = {name: parameters[name] for name in names.SAMPLING_PARAMETERS & parameters.keys() if parameters[name] is not None}
    return renamed(parameters, _REQUEST) | ({names.REQUEST_PARAMETERS: others} if others else {})


def read_usage(counts: Any) -> dict[str, Any]:
    """Token counts, under any name that an API gives them."""
    return renamed(counts, _USAGE) if isinstance(counts, Mapping) else {}


def read_chat_response(answer: Any) -> dict[str, Any]:
    """What a chat completion says; nothing when `answer` is not one."""
    if not isinstance(answer, Mapping) or not isinstance(answer.get("choices"), list):
        return {}
    choices = [choice for choice in answer["choices"] if isinstance(choice, Mapping)]
    reasons = [reason for choice in choices if (reason := first_text(choice.get("finish_reason")))]
    messages = [choice.get("message") for choice in choices]
    found = {
        names.GEN_AI_RESPONSE_ID: answer.get("id"),
        names.GEN_AI_RESPONSE_MODEL: answer.get("model"),
        names.GEN_AI_RESPONSE_FINISH_REASONS: reasons or None,
        names.GEN_AI_OUTPUT_MESSAGES: messages if all(isinstance(message, Mapping) for message in messages) else None,
    }
    return {name: value for name, value in found.items() if value} | read_usage(answer.get("usage"))
