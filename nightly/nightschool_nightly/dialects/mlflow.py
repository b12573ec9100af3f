"""MLflow tracing: every attribute is JSON text; input and output are the call's own arguments and result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nightschool import semconv as names
from nightschool_nightly.dialects.dialect import Dialect
from nightschool_nightly.dialects.openai_json import read_chat_request, read_chat_response, read_usage
from nightschool_nightly.dialects.span import RawSpan
from nightschool_nightly.dialects.values import first_text, parsed, present

_KIND = "mlflow.spanType"
_MODEL_TYPES = {"CHAT_MODEL", "LLM"}


def _read(span: RawSpan) -> dict[str, Any]:
    """What the span says in MLflow's names; only chat models and tools are calls."""
    attributes = span.attributes
    kind = first_text(_value(attributes, _KIND))
    if kind in _MODEL_TYPES:
        return _model_call(attributes)
    return _tool_run(span) if kind == "TOOL" else {}


def _value(attributes: Mapping[str, Any], name: str) -> Any:
    """The value of an attribute; text that is not JSON means itself."""
    return parsed(attributes.get(name))


def _model_call(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {names.GEN_AI_OPERATION_NAME: "chat"}
    inputs, outputs = _value(attributes, "mlflow.spanInputs"), _value(attributes, "mlflow.spanOutputs")
    found |= read_chat_request(inputs) if isinstance(inputs, dict) else _messages(names.GEN_AI_INPUT_MESSAGES, inputs, "user")
    if tools := _value(attributes, "mlflow.chat.tools"):
        found[names.GEN_AI_TOOL_DEFINITIONS] = tools
    if model := first_text(_value(attributes, "mlflow.llm.model")):
        found[names.GEN_AI_RESPONSE_MODEL] = model
    found |= read_chat_response(outputs) or _messages(names.GEN_AI_OUTPUT_MESSAGES, outputs, "assistant")
    return found | read_usage(_value(attributes, "mlflow.chat.tokenUsage"))


def _messages(name: str, given: Any, role: str) -> dict[str, Any]:
    """Messages that were passed as they are: a list of them, one of them, or text."""
    if isinstance(given, str) and given:
        return {name: [{"role": role, "content": given}]}
    if isinstance(given, dict) and ("content" in given or "tool_calls" in given):
        return {name: [{"role": role, "content": None, **given}]}
    return {name: given} if isinstance(given, list) else {}


def _tool_run(span: RawSpan) -> dict[str, Any]:
    return present(
        {
            names.GEN_AI_OPERATION_NAME: "execute_tool",
            names.GEN_AI_TOOL_NAME: span.name,
            names.GEN_AI_TOOL_CALL_ARGUMENTS: _value(span.attributes, "mlflow.spanInputs"),
            names.GEN_AI_TOOL_CALL_RESULT: _value(span.attributes, "mlflow.spanOutputs"),
        }
    )


MLFLOW = Dialect(markers=frozenset({"mlflow"}), read=_read, kind=_KIND)
