"""Redaction of OpenTelemetry messages: bytes in, bytes out, the same object when nothing was found.

Most requests hold nothing and are not even parsed (`prefilter`). In the others every text is read: attributes of any
shape, span events and links, span names and status messages, log bodies, resources. Ids and names that other records
refer to stay as they are. Content that cannot be checked does not pass: the attribute is dropped, the span and its
metadata stay.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, MutableSequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from nightschool import semconv
from nightschool.otlp.attributes import key_values
from nightschool.redaction.redactor import UNREADABLE, VERSION, Found, Redactor, to_json

M = TypeVar("M", bound=Message)

# Names and ids, never a person's words: they join records, name a task or a release, or say which program this was.
_METADATA = {
    semconv.TENANT_ID,
    semconv.TASK,
    semconv.SUBJECT,
    semconv.EPISODE_ID,
    semconv.RELEASE,
    semconv.SPAN_SIDE,
    semconv.PROMPT_TOKEN_IDS,
    semconv.COMPLETION_TOKEN_IDS,
    semconv.COMPLETION_LOGPROBS,
    semconv.REDACTION_VERSION,
    semconv.REDACTION_COUNTS,
    semconv.OUTCOME_ID,
    semconv.OUTCOME_OP,
    semconv.OUTCOME_TARGET,
    semconv.OUTCOME_ORIGINAL_SHA256,
    semconv.OUTCOME_SOURCE_KIND,
    semconv.OUTCOME_SOURCE_ID,
    semconv.GEN_AI_OPERATION_NAME,
    semconv.GEN_AI_PROVIDER_NAME,
    semconv.GEN_AI_REQUEST_MODEL,
    semconv.GEN_AI_RESPONSE_MODEL,
    semconv.GEN_AI_RESPONSE_ID,
    semconv.GEN_AI_RESPONSE_FINISH_REASONS,
    semconv.GEN_AI_TOOL_CALL_ID,
    semconv.SERVER_ADDRESS,
    semconv.ERROR_TYPE,
}
_METADATA_OF = re.compile(r"(?:service|telemetry|host|os|container|k8s|cloud)\.")
_IDENTIFIER = re.compile(rf"{re.escape(semconv.GEN_AI_CONVERSATION_ID)}|(?:.*\.)?session[._]?id|nightschool\.join_key\..*", re.I)
_USER = re.compile(r"(?:.*[._])?(?:end)?user(?:[._]?(?:id|name|email|full_name)|\.pseudo\.id)?", re.I)
# The same in bytes: as the key of an attribute, just before the tag of its value, and as a key in the JSON of metadata.
_USER_BYTES = re.compile(
    rb"ser(?:[._]?(?:[Ii]d|ID|[Nn]ame|[Ee]mail|full_name)|\.pseudo\.id)?\x12|ser[._]?(?:[Ii]d|ID|[Nn]ame|[Ee]mail|full_name)\""
)
_FREE_FORM = re.compile(r".*(?:metadata|invocation_parameters)", re.I)
# The patterns above ask how a key begins or ends, and they look at all that is between: of a long key both ends are enough.
_KEY_END_CHARS = 128
_TOKENS = (semconv.PROMPT_TOKEN_IDS, semconv.COMPLETION_TOKEN_IDS, semconv.COMPLETION_LOGPROBS)


def redact_traces(redactor: Redactor, raw: bytes, *, subjects: bool = False) -> bytes:
    """Redact a serialized `ExportTraceServiceRequest`; with `subjects` also raw user ids (the SDK sends none)."""
    return _redacted(redactor, raw, ExportTraceServiceRequest, _in_traces, subjects)


def suspicious_places(redactor: Redactor, raw: bytes) -> list[tuple[int, int]] | None:
    """Where in a request `redact_traces` with `subjects` could change anything; None when it may be anywhere.

    Start and end of each place, in order and without overlap.
    """
    if redactor.rules.is_off:
        return [match.span() for match in _USER_BYTES.finditer(raw)]
    return redactor.rules.places_in(raw, also=_USER_BYTES.pattern)


def redact_logs(redactor: Redactor, raw: bytes, *, subjects: bool = False) -> bytes:
    """Redact a serialized `ExportLogsServiceRequest`, except outcomes: `Redactor.outcome` knows their fields."""
    return _redacted(redactor, raw, ExportLogsServiceRequest, _in_logs, subjects)


def redact_refused_outcome(redactor: Redactor, raw: bytes) -> bytes:
    """Redact a serialized `ExportLogsServiceRequest` of one log record that should be an outcome and is none.

    Nobody knows what its fields hold, so all are redacted, also those that are a name or an id in an outcome.
    """
    message = ExportLogsServiceRequest.FromString(raw)
    redaction = _MessageRedaction(redactor, True, exempt=set())
    for resource in message.resource_logs:
        for scope in resource.scope_logs:
            for log in scope.log_records:
                _in_log(redaction, log)
                for item in log.attributes:
                    if item.key == semconv.OUTCOME_SOURCE_ID:
                        redaction.name_subject(item.value)
    redaction.count()
    return message.SerializeToString()


def redact_span(redactor: Redactor, raw: bytes) -> bytes:
    """Redact one serialized `Span`."""
    return _redacted(redactor, raw, Span, _in_span, False)


def _redacted(
    redactor: Redactor, raw: bytes, kind: type[M], walk: Callable[[_MessageRedaction, M], None], subjects: bool
) -> bytes:
    if not redactor.rules.may_be_in(raw) and not (subjects and _USER_BYTES.search(raw)):
        return raw
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError:
        return raw  # not a message; the code that reads it refuses it
    redaction = _MessageRedaction(redactor, subjects)
    walk(redaction, message)
    redaction.count()
    return message.SerializeToString() if redaction.is_changed else raw


def _in_traces(redaction: _MessageRedaction, request: ExportTraceServiceRequest) -> None:
    for resource in request.resource_spans:
        redaction.attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            redaction.attributes(scope.scope.attributes)
            for span in scope.spans:
                _in_span(redaction, span)


def _in_span(redaction: _MessageRedaction, span: Span) -> None:
    before = Counter(redaction.found)
    span.name = redaction.plain(span.name)
    if span.status.message:  # assigning would create a status where there is none
        span.status.message = redaction.plain(span.status.message)
    redaction.attributes(span.attributes)
    for event in span.events:
        redaction.attributes(event.attributes)
    for link in span.links:
        redaction.attributes(link.attributes)
    if found := redaction.found - before:
        _mark(span.attributes, found)


def _in_logs(redaction: _MessageRedaction, request: ExportLogsServiceRequest) -> None:
    for resource in request.resource_logs:
        redaction.attributes(resource.resource.attributes)
        for scope in resource.scope_logs:
            redaction.attributes(scope.scope.attributes)
            for log in scope.log_records:
                if log.event_name != semconv.GEN_AI_EVALUATION_RESULT:
                    _in_log(redaction, log)


def _in_log(redaction: _MessageRedaction, log: LogRecord) -> None:
    before = Counter(redaction.found)
    redaction.checked(log.body)
    redaction.attributes(log.attributes)
    if found := redaction.found - before:
        _mark(log.attributes, found)


def _mark(attributes: MutableSequence[KeyValue], found: Found) -> None:
    """Say what was done, and drop the token ids: they would still spell what was taken out of the text."""
    earlier = next((item.value.string_value for item in attributes if item.key == semconv.REDACTION_COUNTS), "{}")
    try:
        counts = Counter({str(kind): int(number) for kind, number in json.loads(earlier).items()}) + found
    except (ValueError, TypeError, AttributeError):
        counts = found
    gone = {*_TOKENS, semconv.REDACTION_VERSION, semconv.REDACTION_COUNTS}
    kept = [item for item in attributes if item.key not in gone]
    del attributes[:]
    attributes.extend(kept)
    counted = json.dumps(dict(sorted(counts.items())))
    attributes.extend(key_values({semconv.REDACTION_VERSION: VERSION, semconv.REDACTION_COUNTS: counted}))


class _MessageRedaction:
    """One message while it is redacted."""

    def __init__(self, redactor: Redactor, subjects: bool, *, exempt: set[str] = _METADATA) -> None:
        """Attributes of the names in `exempt` are not looked at."""
        self._redactor, self._subjects, self._exempt = redactor, subjects, exempt
        self.found: Found = Counter()
        """Findings that changed a text. User ids do not count: they change no words, so the token ids stay right."""
        self.num_subjects = 0

    @property
    def is_changed(self) -> bool:
        return bool(self.found) or self.num_subjects > 0

    def count(self) -> None:
        """Tell the redactor what was found."""
        self._redactor.count(self.found + Counter({"user-id": self.num_subjects}))

    def plain(self, text: str) -> str:
        return self._redactor.text(text, self.found)

    def attributes(self, attributes: MutableSequence[KeyValue]) -> None:
        """Redact attributes in place; one that cannot be checked is dropped."""
        dropped = [place for place, item in enumerate(attributes) if not self._attribute(item)]
        for place in reversed(dropped):
            del attributes[place]

    def _attribute(self, item: KeyValue) -> bool:
        key, value = item.key, item.value
        if key in self._exempt or _METADATA_OF.match(key):
            return True
        if len(key) > 2 * _KEY_END_CHARS:
            key = key[:_KEY_END_CHARS] + key[-_KEY_END_CHARS:]
        if self._subjects and _USER.fullmatch(key):
            self.name_subject(value)
        elif _IDENTIFIER.fullmatch(key) and value.HasField("string_value"):
            value.string_value = self._redactor.identifier(value.string_value, self.found)
        else:
            if self._subjects and _FREE_FORM.fullmatch(key) and value.HasField("string_value"):
                value.string_value = self._name_subjects_in(value.string_value)
            return self.checked(value)
        return True

    def checked(self, value: AnyValue) -> bool:
        """Redact a value in place; False when that failed, and then nothing of it may leave."""
        try:
            self._value(value)
        except Exception:
            # Whatever the error is: what was not checked does not leave.
            self.found["unreadable"] += 1
            value.string_value = UNREADABLE
            return False
        return True

    def _value(self, value: AnyValue) -> None:
        match value.WhichOneof("value"):
            case "string_value":
                value.string_value = self.plain(value.string_value)
            case "int_value":
                if isinstance(changed := self._redactor.value(value.int_value, self.found), str):
                    value.string_value = changed
            case "array_value":
                for item in value.array_value.values:
                    self._value(item)
            case "kvlist_value":
                for pair in value.kvlist_value.values:
                    pair.key = self.plain(pair.key)
                    self._value(pair.value)
            case "bytes_value":
                self._bytes(value)

    def _bytes(self, value: AnyValue) -> None:
        """Bytes that are UTF-8 text are redacted like a text."""
        try:
            text = value.bytes_value.decode()
        except UnicodeDecodeError:
            return
        if (changed := self.plain(text)) is not text:
            value.bytes_value = changed.encode()

    # --- user ids -----------------------------------------------------------------------------------------------------
    def name_subject(self, value: AnyValue) -> None:
        """Replace a raw user id."""
        kind = value.WhichOneof("value")
        if kind in ("string_value", "int_value"):
            raw = str(getattr(value, kind))
            value.string_value = self._subject(raw)

    def _subject(self, raw: str) -> str:
        subject = self._redactor.subject(raw)
        self.num_subjects += subject != raw
        return subject

    def _name_subjects_in(self, text: str) -> str:
        """`text` with user ids replaced, if it is JSON: some instrumentations write their metadata so."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            return text
        before = self.num_subjects
        changed = self._walk_subjects(data)
        return to_json(changed) if self.num_subjects > before else text

    def _walk_subjects(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self._walk_subjects(item) for item in data]
        if not isinstance(data, dict):
            return data
        return {
            key: self._subject(str(item))
            if _USER.fullmatch(key) and isinstance(item, (str, int)) and not isinstance(item, bool)
            else self._walk_subjects(item)
            for key, item in data.items()
        }
