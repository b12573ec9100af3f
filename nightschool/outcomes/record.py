"""Outcome records: what happened after an answer. Parsed from JSON, and stored as OpenTelemetry log records.

An outcome names one target and says one thing about it: a value (a thumb, a rating, the queue that was chosen in the
end), an edit (what the human made of the answer) or a demonstration (what the human answered without the model's
answer). It may come before its trace or days later, be corrected, or be retracted. On the wire it is the GenAI event
`gen_ai.evaluation.result` plus `nightschool.outcome.*`, because the conventions have no event for feedback.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from nightschool import semconv
from nightschool.errors import RecordError, shown
from nightschool.otlp.attributes import key_values, scalar_of
from nightschool.outcomes.fields import (
    MAX_METADATA_BYTES,
    SOURCE_KINDS,
    TARGET_KINDS,
    Value,
    answer_of,
    canonical,
    parse_final,
    parse_metadata,
    parse_optional_text,
    parse_source,
    parse_target,
    parse_text,
    parse_time,
    parse_value,
)

__all__ = ["SOURCE_KINDS", "TARGET_KINDS", "Outcome", "Value", "canonical", "from_log_record", "parse_outcome", "to_logs_request"]

_CONTENTS = ("value", "edit", "demonstration")
_FIELDS = {"event_id", "target", "name", *_CONTENTS, "op", "source", "occurred_at", "comment", "metadata", "policy_version"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome record."""

    target: Mapping[str, Any]
    """Exactly one of trace_id (with an optional span_id), response_id, conversation_id (with an optional turn),
    episode_id and join_key."""
    name: str
    value: Value = None
    final_text: str | None = None
    """The human's own final answer, as text."""
    final_messages: Sequence[Mapping[str, Any]] | None = None
    """The same as messages; the last message of the assistant is the answer."""
    is_demonstration: bool = False
    """The final answer was not made from the model's, so the two are not compared."""
    original_sha256: str | None = None
    """SHA-256 in hex of the text that was edited, where the app has it; it tells which answer of a trace that was."""
    op: Literal["set", "retract"] = "set"
    source_kind: str = "human"
    source_id: str = ""
    """Pseudonym of the rater."""
    occurred_at_ns: int | None = None
    comment: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    release: str | None = None
    """Digest of the release that answered, where the writer of the outcome knows it; `policy_version` in JSON."""
    event_id: str = ""
    """An id chosen by the client; records with the same one are duplicates. Empty for none; `id` is a hash then."""

    @property
    def target_kind(self) -> str:
        """One of `TARGET_KINDS`."""
        return next(kind for kind in TARGET_KINDS if kind in self.target)

    @property
    def final_answer(self) -> str | None:
        """The human's own answer as text; None when the outcome is a value."""
        return answer_of(self.final_messages) if self.final_messages is not None else self.final_text

    @property
    def id(self) -> str:
        """What tells exact duplicates: the event id, else a SHA-256 of the content in hex."""
        return self.event_id or hashlib.sha256(canonical(self.to_json()).encode()).hexdigest()

    @property
    def key(self) -> bytes:
        """The key in the stream: the trace id where it is known, as spans have it, else a hash of the target."""
        trace_id = self.target.get("trace_id")
        return (trace_id or hashlib.sha256(canonical(self.target).encode()).hexdigest()).encode()

    def to_json(self) -> dict[str, Any]:
        """The JSON body of `POST /v1/outcomes` that gives this record."""
        body: dict[str, Any] = {"target": dict(self.target), "name": self.name, "op": self.op}
        body["source"] = {"kind": self.source_kind, "id": self.source_id}
        if self.final_text is not None or self.final_messages is not None:
            held = {name: getattr(self, name) for name in ("final_text", "final_messages", "original_sha256")}
            content = "demonstration" if self.is_demonstration else "edit"
            body[content] = {name: value for name, value in held.items() if value is not None}
        elif self.op == "set" or self.value is not None:
            body["value"] = self.value
        if self.occurred_at_ns is not None:
            body["occurred_at"] = self.occurred_at_ns
        rest = {
            "comment": self.comment,
            "metadata": self.metadata,
            "policy_version": self.release,
            "event_id": self.event_id,
        }
        return body | {name: value for name, value in rest.items() if value}


# --- JSON -> Outcome --------------------------------------------------------------------------------------------------
def parse_outcome(body: Any, *, occurred_at_ns: int | None = None) -> Outcome:
    """Check one JSON outcome and return it; `RecordError` names the field, what was got and what is allowed.

    `occurred_at_ns` is its time where that is known from another place than the body.
    """
    if not isinstance(body, dict):
        raise RecordError(f"an outcome is a JSON object, got {type(body).__name__}")
    if unknown := sorted(set(body) - _FIELDS):
        raise RecordError(f"unknown field {shown(unknown[0])}; allowed are {', '.join(sorted(_FIELDS))}")
    op = body.get("op", "set")
    if op not in ("set", "retract"):
        raise RecordError(f"op is {shown(op)}; allowed are 'set' and 'retract'")
    contents = [name for name in _CONTENTS if name in body and (name == "value" or body[name] is not None)]
    if op == "set" and not contents:
        raise RecordError("an outcome needs a 'value', or an 'edit' or a 'demonstration' with 'final_text'; got none of them")
    if len(contents) > 1:
        raise RecordError(f"an outcome has one of {', '.join(_CONTENTS)}, got {' and '.join(contents)}")
    final = parse_final(body[contents[0]], contents[0]) if contents and contents[0] != "value" else {}
    kind, source_id = parse_source(body.get("source"))
    return Outcome(
        target=parse_target(body.get("target")),
        name=parse_text(body.get("name"), "name", limit=256),
        value=parse_value(body.get("value")),
        **final,
        is_demonstration=contents == ["demonstration"],
        op=op,
        source_kind=kind,
        source_id=source_id,
        occurred_at_ns=occurred_at_ns or parse_time(body.get("occurred_at")),
        comment=parse_optional_text(body.get("comment"), "comment", limit=MAX_METADATA_BYTES),
        metadata=parse_metadata(body.get("metadata")),
        release=parse_optional_text(body.get("policy_version"), "policy_version", limit=256),
        event_id=parse_optional_text(body.get("event_id"), "event_id", limit=256) or "",
    )


# --- Outcome <-> OTLP log record --------------------------------------------------------------------------------------
def to_logs_request(outcome: Outcome, *, tenant: str, received_ns: int) -> ExportLogsServiceRequest:
    """One outcome as an OTLP request, in which form the outcomes topic holds it."""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.extend(key_values({semconv.TENANT_ID: tenant}))
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
        semconv.OUTCOME_FINAL_MESSAGES: canonical(outcome.final_messages) if outcome.final_messages is not None else None,
        semconv.OUTCOME_ORIGINAL_SHA256: outcome.original_sha256,
        semconv.OUTCOME_DEMONSTRATION: outcome.is_demonstration or None,
        semconv.OUTCOME_METADATA: canonical(outcome.metadata) if outcome.metadata else None,
        semconv.RELEASE: outcome.release,
    }
    required: dict[str, Value] = {
        semconv.GEN_AI_EVALUATION_NAME: outcome.name,
        semconv.OUTCOME_ID: outcome.id,
        semconv.OUTCOME_OP: outcome.op,
        semconv.OUTCOME_TARGET: canonical(outcome.target),
        semconv.OUTCOME_SOURCE_KIND: outcome.source_kind,
        semconv.OUTCOME_SOURCE_ID: outcome.source_id,
    }
    log.attributes.extend(key_values({**required, **optional}))  # None is left out
    return request


def from_log_record(log: LogRecord) -> Outcome:
    """The outcome in an OTLP log record; `RecordError` if it is not one.

    A `gen_ai.evaluation.result` event of another tool, without our attributes, is understood too: its target is its own
    span, or the response that it names.
    """
    attributes: dict[str, Any] = {item.key: scalar_of(item.value) for item in log.attributes}
    if log.event_name != semconv.GEN_AI_EVALUATION_RESULT or semconv.GEN_AI_EVALUATION_NAME not in attributes:
        raise RecordError(f"log record {log.event_name!r} is not a {semconv.GEN_AI_EVALUATION_RESULT} event with a name")
    value = attributes.get(semconv.OUTCOME_VALUE, attributes.get(semconv.GEN_AI_EVALUATION_SCORE_LABEL))
    if value is None:
        value = attributes.get(semconv.GEN_AI_EVALUATION_SCORE_VALUE)
    occurred_ns = log.time_unix_nano or log.observed_time_unix_nano
    if occurred_ns >= 1 << 63:
        raise RecordError(f"time_unix_nano is {occurred_ns}; it must be nanoseconds since 1970, below 2^63")
    try:
        metadata = json.loads(attributes.get(semconv.OUTCOME_METADATA, "{}"))
        target = _log_target(log, attributes)
        final = _log_final(attributes)
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
        "comment": attributes.get(semconv.GEN_AI_EVALUATION_EXPLANATION) or None,
        "metadata": metadata,
        "policy_version": attributes.get(semconv.RELEASE),
        "event_id": attributes.get(semconv.OUTCOME_ID),
    }
    if final:
        body["demonstration" if attributes.get(semconv.OUTCOME_DEMONSTRATION) else "edit"] = final
    else:
        body["value"] = value
    # Not as a field of the body: there the unit of a number is guessed from its size, and here it is known.
    return parse_outcome(body, occurred_at_ns=occurred_ns or None)


def _log_final(attributes: Mapping[str, Any]) -> dict[str, Any]:
    final: dict[str, Any] = {}
    if semconv.OUTCOME_FINAL_TEXT in attributes:
        final["final_text"] = attributes[semconv.OUTCOME_FINAL_TEXT]
    if semconv.OUTCOME_FINAL_MESSAGES in attributes:
        final["final_messages"] = json.loads(attributes[semconv.OUTCOME_FINAL_MESSAGES])
    if final and (original := attributes.get(semconv.OUTCOME_ORIGINAL_SHA256)):
        final["original_sha256"] = original
    return final


def _log_target(log: LogRecord, attributes: Mapping[str, Any]) -> dict[str, Any]:
    if text := attributes.get(semconv.OUTCOME_TARGET):
        return dict(json.loads(text))
    # OpenTelemetry writes "no trace" as zeros.
    if any(log.trace_id):
        return {"trace_id": log.trace_id.hex(), **({"span_id": log.span_id.hex()} if any(log.span_id) else {})}
    return {"response_id": attributes.get(semconv.GEN_AI_RESPONSE_ID)}
