"""Outcome records: what happened after an answer. Parsed from JSON, carried as OpenTelemetry log records.

An outcome names one target and says one thing about it: a value (a thumb, a rating, the queue finally chosen) or an edit
(the human's own final text). It may come before its trace, days later, be corrected, or be retracted. On the wire it is the
GenAI event `gen_ai.evaluation.result` plus `nightschool.outcome.*`, since no feedback event exists in the conventions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from nightschool import semconv
from nightschool.errors import RecordError, shown

Value = bool | int | float | str | None
TARGET_KINDS = ("trace_id", "response_id", "conversation_id", "episode_id", "join_key")
SOURCE_KINDS = ("human", "code", "llm", "system")
MAX_TEXT_BYTES = 1 << 20
MAX_METADATA_BYTES = 8 << 10
MAX_METADATA_DEPTH = 32  # far from Python's recursion limit, however deep in a server's stack it is read again
_HEX = {"trace_id": 32, "span_id": 16}
_FIELDS = {"event_id", "target", "name", "value", "edit", "op", "source", "occurred_at", "comment", "metadata", "policy_version"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome record."""

    target: Mapping[str, Any]
    """Exactly one of trace_id (with an optional span_id), response_id, conversation_id (with an optional turn), episode_id and
    join_key."""
    name: str
    value: Value = None
    final_text: str | None = None
    """The human's own final answer; what turns an outcome into a demonstration."""
    original_sha256: str | None = None
    op: Literal["set", "retract"] = "set"
    source_kind: str = "human"
    source_id: str = ""
    """Pseudonym of the rater."""
    occurred_at_ns: int | None = None
    comment: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    policy_version: str | None = None
    event_id: str = ""
    """Client-chosen id that removes exact duplicates; empty means the hash of the content."""

    @property
    def target_kind(self) -> str:
        return next(kind for kind in TARGET_KINDS if kind in self.target)

    @property
    def id(self) -> str:
        return self.event_id or hashlib.sha256(canonical(self.to_json()).encode()).hexdigest()

    @property
    def key(self) -> bytes:
        """The stream key: the trace id when known, so that an outcome meets its trace, else a hash of the target."""
        trace_id = self.target.get("trace_id")
        return (trace_id or hashlib.sha256(canonical(self.target).encode()).hexdigest()).encode()

    def to_json(self) -> dict[str, Any]:
        """The JSON body of `POST /v1/outcomes` that means this record."""
        body: dict[str, Any] = {"target": dict(self.target), "name": self.name, "op": self.op}
        body["source"] = {"kind": self.source_kind, "id": self.source_id}
        if self.final_text is not None:
            body["edit"] = {"final_text": self.final_text}
            if self.original_sha256:
                body["edit"]["original_sha256"] = self.original_sha256
        elif self.op == "set" or self.value is not None:
            body["value"] = self.value
        if self.occurred_at_ns is not None:
            body["occurred_at"] = self.occurred_at_ns
        for name in ("comment", "metadata", "policy_version", "event_id"):
            if getattr(self, name):
                body[name] = getattr(self, name)
        return body


def canonical(data: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


# --- JSON -> Outcome ----------------------------------------------------------------------------------------------------
def parse_outcome(body: Any) -> Outcome:
    """Check one JSON outcome and return it; `RecordError` names the field, what was got and what is allowed."""
    if not isinstance(body, dict):
        raise RecordError(f"an outcome is a JSON object, got {type(body).__name__}")
    if unknown := sorted(set(body) - _FIELDS):
        raise RecordError(f"unknown field {shown(unknown[0])}; allowed are {', '.join(sorted(_FIELDS))}")
    op = body.get("op", "set")
    if op not in ("set", "retract"):
        raise RecordError(f"op is {shown(op)}; allowed are 'set' and 'retract'")
    edit = _parse_edit(body.get("edit"))
    if op == "set" and edit is None and "value" not in body:
        raise RecordError("an outcome needs a 'value' or an 'edit' with 'final_text'; got neither")
    if edit is not None and "value" in body:
        raise RecordError("an outcome has either a 'value' or an 'edit', got both")
    kind, source_id = _parse_source(body.get("source"))
    return Outcome(
        target=_parse_target(body.get("target")),
        name=_text(body.get("name"), "name", limit=256),
        value=_parse_value(body.get("value")),
        final_text=edit["final_text"] if edit else None,
        original_sha256=edit.get("original_sha256") if edit else None,
        op=op,
        source_kind=kind,
        source_id=source_id,
        occurred_at_ns=_parse_time(body.get("occurred_at")),
        comment=_optional_text(body.get("comment"), "comment", limit=MAX_METADATA_BYTES),
        metadata=_parse_metadata(body.get("metadata")),
        policy_version=_optional_text(body.get("policy_version"), "policy_version", limit=256),
        event_id=_optional_text(body.get("event_id"), "event_id", limit=256) or "",
    )


def _text(value: Any, name: str, *, limit: int) -> str:
    if not isinstance(value, str) or not value:
        raise RecordError(f"{name} is {shown(value)}; it must be a non-empty string")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise RecordError(f"{name} holds a lone surrogate and is not Unicode text: {error.reason}") from None
    if size > limit:
        raise RecordError(f"{name} has {size} bytes; at most {limit} are allowed")
    return value


def _optional_text(value: Any, name: str, *, limit: int) -> str | None:
    return None if value is None else _text(value, name, limit=limit)


def _parse_target(target: Any) -> dict[str, Any]:
    if not isinstance(target, dict):
        raise RecordError(f"target is {shown(target)}; it must be an object with exactly one of {', '.join(TARGET_KINDS)}")
    kinds = [kind for kind in TARGET_KINDS if kind in target]
    extra = {"trace_id": "span_id", "conversation_id": "turn"}.get(kinds[0]) if len(kinds) == 1 else None
    if len(kinds) != 1 or set(target) - {kinds[0], extra}:
        raise RecordError(f"target has the fields {shown(sorted(target))}; it must have exactly one of {', '.join(TARGET_KINDS)}")
    kind = kinds[0]
    if kind == "join_key":
        join = target[kind]
        if not isinstance(join, dict) or set(join) != {"ns", "id"}:
            raise RecordError(f"target.join_key is {shown(join)}; it must be {{'ns': ..., 'id': ...}}")
        return {kind: {name: _text(join[name], f"target.join_key.{name}", limit=256) for name in ("ns", "id")}}
    checked: dict[str, Any] = {kind: _text(target[kind], f"target.{kind}", limit=512)}
    if "span_id" in target:
        checked["span_id"] = _text(target["span_id"], "target.span_id", limit=16)
    if "turn" in target:
        turn = target["turn"]
        if not isinstance(turn, int) or isinstance(turn, bool) or not 0 <= turn < 1 << 31:
            raise RecordError(f"target.turn is {shown(turn)}; it must be a whole number from 0")
        checked["turn"] = turn
    for name, digits in _HEX.items():
        if name in checked and (not re.fullmatch(rf"[0-9a-f]{{{digits}}}", checked[name]) or not checked[name].strip("0")):
            raise RecordError(f"target.{name} is {shown(checked[name])}; it must be {digits} lowercase hex digits, not all zero")
    return checked


def _parse_source(source: Any) -> tuple[str, str]:
    if not isinstance(source, dict) or set(source) - {"kind", "id"}:
        raise RecordError(f"source is {shown(source)}; it must be {{'kind': one of {', '.join(SOURCE_KINDS)}, 'id': pseudonym}}")
    if source.get("kind") not in SOURCE_KINDS:
        raise RecordError(f"source.kind is {shown(source.get('kind'))}; allowed are {', '.join(SOURCE_KINDS)}")
    return source["kind"], _optional_text(None if source.get("id") == "" else source.get("id"), "source.id", limit=256) or ""


def _parse_edit(edit: Any) -> dict[str, str] | None:
    if edit is None:
        return None
    if not isinstance(edit, dict) or set(edit) - {"final_text", "original_sha256"}:
        raise RecordError(f"edit is {shown(edit)}; it must be {{'final_text': ..., 'original_sha256': optional}}")
    checked = {"final_text": _text(edit.get("final_text"), "edit.final_text", limit=MAX_TEXT_BYTES)}
    if (original := edit.get("original_sha256")) is not None:
        if not isinstance(original, str) or not re.fullmatch(r"[0-9a-f]{64}", original):
            raise RecordError(f"edit.original_sha256 is {shown(original)}; it must be 64 lowercase hex digits")
        checked["original_sha256"] = original
    return checked


def _parse_value(value: Any) -> Value:
    if isinstance(value, str):
        return _text(value, "value", limit=MAX_TEXT_BYTES) if value else value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return value
    raise RecordError(f"value is {shown(value)}; it must be a bool, a finite number, a string or null")


def _parse_time(value: Any) -> int | None:
    """RFC 3339 text, or nanoseconds since the epoch as a whole number; 0 is unknown, as in OTLP."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value or None
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        except (ValueError, OverflowError):
            pass
        else:
            nanoseconds = (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000
            if 0 <= nanoseconds < 1 << 63:
                return nanoseconds or None
    raise RecordError(
        f"occurred_at is {shown(value)}; it must be RFC 3339 like '2026-01-31T12:00:00Z', or nanoseconds since 1970"
    )


def _parse_metadata(metadata: Any) -> dict[str, Any]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or _nests_deeper_than(MAX_METADATA_DEPTH, metadata):
        raise RecordError(f"metadata is {shown(metadata)}; it must be an object, at most {MAX_METADATA_DEPTH} levels deep")
    try:
        size = len(canonical(metadata).encode())
    except (TypeError, ValueError, RecursionError):
        raise RecordError(
            "metadata must be what JSON can carry; it holds NaN, infinity, a lone surrogate or another type"
        ) from None
    if size > MAX_METADATA_BYTES:
        raise RecordError(f"metadata has {size} bytes; at most {MAX_METADATA_BYTES} are allowed")
    return metadata


def _nests_deeper_than(levels: int, value: Any) -> bool:
    if not isinstance(value, (dict, list, tuple)):
        return False
    children = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nests_deeper_than(levels - 1, child) for child in children)


# --- Outcome <-> OTLP log record ----------------------------------------------------------------------------------------
def to_logs_request(outcome: Outcome, *, tenant: str, received_ns: int) -> ExportLogsServiceRequest:
    """One outcome as the OTLP request that the outcomes topic holds."""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.append(_attribute(semconv.TENANT_ID, tenant))
    log = resource.scope_logs.add().log_records.add()
    log.event_name = semconv.GEN_AI_EVALUATION_RESULT
    log.time_unix_nano = outcome.occurred_at_ns if outcome.occurred_at_ns is not None else received_ns
    log.observed_time_unix_nano = received_ns
    log.trace_id = bytes.fromhex(outcome.target.get("trace_id", ""))
    log.span_id = bytes.fromhex(outcome.target.get("span_id", ""))
    numeric = isinstance(outcome.value, (bool, int, float))
    optional: dict[str, Value] = {
        semconv.GEN_AI_EVALUATION_SCORE_VALUE: float(outcome.value) if numeric else None,  # type: ignore[arg-type]
        semconv.GEN_AI_EVALUATION_SCORE_LABEL: outcome.value if isinstance(outcome.value, str) else None,
        semconv.GEN_AI_EVALUATION_EXPLANATION: outcome.comment,
        semconv.GEN_AI_RESPONSE_ID: outcome.target.get("response_id"),
        semconv.GEN_AI_CONVERSATION_ID: outcome.target.get("conversation_id"),
        semconv.OUTCOME_VALUE: outcome.value,
        semconv.OUTCOME_FINAL_TEXT: outcome.final_text,
        semconv.OUTCOME_ORIGINAL_SHA256: outcome.original_sha256,
        semconv.OUTCOME_METADATA: canonical(outcome.metadata) if outcome.metadata else None,
        semconv.POLICY_VERSION: outcome.policy_version,
    }
    required: dict[str, Value] = {
        semconv.GEN_AI_EVALUATION_NAME: outcome.name,
        semconv.OUTCOME_ID: outcome.id,
        semconv.OUTCOME_OP: outcome.op,
        semconv.OUTCOME_TARGET: canonical(outcome.target),
        semconv.OUTCOME_SOURCE_KIND: outcome.source_kind,
        semconv.OUTCOME_SOURCE_ID: outcome.source_id,
    }
    for name, value in {**required, **{k: v for k, v in optional.items() if v is not None}}.items():
        log.attributes.append(_attribute(name, value))
    return request


def from_log_record(log: LogRecord) -> Outcome:
    """The outcome in an OTLP log record; `RecordError` if it is not one.

    A foreign `gen_ai.evaluation.result` event without our attributes is understood too: it targets its own span, or the
    response it names.
    """
    attributes = {item.key: _plain(item.value) for item in log.attributes}
    if log.event_name != semconv.GEN_AI_EVALUATION_RESULT or semconv.GEN_AI_EVALUATION_NAME not in attributes:
        raise RecordError(f"log record {log.event_name!r} is not a {semconv.GEN_AI_EVALUATION_RESULT} event with a name")
    value = attributes.get(semconv.OUTCOME_VALUE, attributes.get(semconv.GEN_AI_EVALUATION_SCORE_LABEL))
    if value is None:
        value = attributes.get(semconv.GEN_AI_EVALUATION_SCORE_VALUE)
    try:
        metadata = json.loads(attributes.get(semconv.OUTCOME_METADATA, "{}"))
        target = _log_target(log, attributes)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"outcome log record cannot be read: {error}") from None
    body: dict[str, Any] = {
        "target": target,
        "name": attributes[semconv.GEN_AI_EVALUATION_NAME],
        "op": attributes.get(semconv.OUTCOME_OP, "set"),
        "source": {
            "kind": attributes.get(semconv.OUTCOME_SOURCE_KIND, "system"),
            "id": attributes.get(semconv.OUTCOME_SOURCE_ID, ""),
        },
        "occurred_at": log.time_unix_nano or log.observed_time_unix_nano,
        "comment": attributes.get(semconv.GEN_AI_EVALUATION_EXPLANATION) or None,
        "metadata": metadata,
        "policy_version": attributes.get(semconv.POLICY_VERSION),
        "event_id": attributes.get(semconv.OUTCOME_ID),
    }
    if semconv.OUTCOME_FINAL_TEXT in attributes:
        body["edit"] = {"final_text": attributes[semconv.OUTCOME_FINAL_TEXT]}
        if original := attributes.get(semconv.OUTCOME_ORIGINAL_SHA256):
            body["edit"]["original_sha256"] = original
    else:
        body["value"] = value
    return parse_outcome(body)


def _log_target(log: LogRecord, attributes: Mapping[str, Any]) -> dict[str, Any]:
    if text := attributes.get(semconv.OUTCOME_TARGET):
        return dict(json.loads(text))
    # All zero is how OpenTelemetry writes "no trace".
    if any(log.trace_id):
        return {"trace_id": log.trace_id.hex(), **({"span_id": log.span_id.hex()} if any(log.span_id) else {})}
    return {"response_id": attributes.get(semconv.GEN_AI_RESPONSE_ID)}


def _attribute(key: str, value: Value) -> KeyValue:
    match value:
        case bool():
            return KeyValue(key=key, value=AnyValue(bool_value=value))
        case int():
            return KeyValue(key=key, value=AnyValue(int_value=value))
        case float():
            return KeyValue(key=key, value=AnyValue(double_value=value))
        case _:
            return KeyValue(key=key, value=AnyValue(string_value=value or ""))


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind in ("bool_value", "int_value", "double_value", "string_value") else None
