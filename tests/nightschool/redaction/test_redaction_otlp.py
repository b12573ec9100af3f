"""Redaction of OpenTelemetry messages: every place of a text, token ids, user ids, and bytes that stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from nightschool import semconv as names
from nightschool.keys import subject_of
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.redaction import Rules
from nightschool.redaction import otlp as redaction
from nightschool.redaction.otlp import redact_logs, redact_span, redact_traces
from nightschool.redaction.redactor import UNREADABLE, VERSION, Redactor

MAIL = "anna@example.com"


@pytest.fixture
def redactor() -> Redactor:
    return Redactor(Rules(), "secret")


@pytest.fixture
def pseudonym(redactor: Redactor) -> str:
    from collections import Counter

    return redactor.text(MAIL, Counter())


def text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def span_with(**attributes: Any) -> Span:
    """A span; `attributes` are named by their constants in semconv."""
    span = Span(trace_id=b"t" * 16, span_id=b"s" * 8, name="chat m")
    for name, value in attributes.items():
        key = getattr(names, name)
        span.attributes.append(KeyValue(key=key, value=value if isinstance(value, AnyValue) else text(value)))
    return span


def traces(*spans: Span) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.extend(spans)
    return request


def attributes_of(span: Any) -> dict[str, AnyValue]:
    return {item.key: item.value for item in span.attributes}


def test_a_request_without_findings_is_the_very_same_bytes(redactor: Redactor) -> None:
    """A message without findings is neither parsed nor copied."""
    raw = traces(span_with(GEN_AI_INPUT_MESSAGES="hello", SUBJECT="0" * 32)).SerializeToString()
    assert redact_traces(redactor, raw, subjects=True) is raw


PLACES: dict[str, Callable[[ExportTraceServiceRequest], None]] = {
    "string": lambda r: r.resource_spans[0].scope_spans[0].spans[0].attributes.append(KeyValue(key="a", value=text(MAIL))),
    "array": lambda r: (
        r.resource_spans[0]
        .scope_spans[0]
        .spans[0]
        .attributes.append(KeyValue(key="a", value=AnyValue(array_value=ArrayValue(values=[text("x"), text(MAIL)]))))
    ),
    "kvlist": lambda r: (
        r.resource_spans[0]
        .scope_spans[0]
        .spans[0]
        .attributes.append(
            KeyValue(key="a", value=AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key=MAIL, value=text(MAIL))])))
        )
    ),
    "bytes": lambda r: (
        r.resource_spans[0]
        .scope_spans[0]
        .spans[0]
        .attributes.append(KeyValue(key="a", value=AnyValue(bytes_value=MAIL.encode())))
    ),
    "name": lambda r: setattr(r.resource_spans[0].scope_spans[0].spans[0], "name", f"ask {MAIL}"),
    "status": lambda r: setattr(r.resource_spans[0].scope_spans[0].spans[0].status, "message", f"{MAIL} is unknown"),
    "event": lambda r: (
        r.resource_spans[0]
        .scope_spans[0]
        .spans[0]
        .events.add(name="e")
        .attributes.append(KeyValue(key="exception.message", value=text(MAIL)))
    ),
    "link": lambda r: (
        r.resource_spans[0].scope_spans[0].spans[0].links.add().attributes.append(KeyValue(key="l", value=text(MAIL)))
    ),
    "resource": lambda r: r.resource_spans[0].resource.attributes.append(
        KeyValue(key="process.command_line", value=text(f"app {MAIL}"))
    ),
    "scope": lambda r: r.resource_spans[0].scope_spans[0].scope.attributes.append(KeyValue(key="s", value=text(MAIL))),
    "escaped": lambda r: (
        r.resource_spans[0]
        .scope_spans[0]
        .spans[0]
        .attributes.append(KeyValue(key="a", value=text(json.dumps([{"content": MAIL}]).replace("@", "\\u0040"))))
    ),
    "vendor": lambda r: (
        r.resource_spans[0]
        .scope_spans[0]
        .spans[0]
        .attributes.append(KeyValue(key="llm.input_messages.0.message.content", value=text(MAIL)))
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_place_is_forgotten(redactor: Redactor, pseudonym: str, place: str) -> None:
    """Wherever instrumentations put a text, the pseudonym is there afterwards, and the address nowhere."""
    request = traces(span_with())
    PLACES[place](request)
    said = redact_traces(redactor, request.SerializeToString())
    assert MAIL.encode() not in said and b"u0040" not in said and pseudonym.encode() in said


def test_a_changed_span_says_so_and_loses_its_token_ids(redactor: Redactor) -> None:
    """Token ids would still spell what was taken out; a span in which nothing was found keeps its own."""
    tokens = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=7)]))
    said = {"PROMPT_TOKEN_IDS": tokens, "COMPLETION_TOKEN_IDS": tokens, "COMPLETION_LOGPROBS": tokens, "GEN_AI_RESPONSE_ID": "r1"}
    request = traces(
        span_with(GEN_AI_INPUT_MESSAGES=f"{MAIL} {MAIL} 8.8.8.8", **said), span_with(GEN_AI_INPUT_MESSAGES="hi", **said)
    )
    changed = ExportTraceServiceRequest.FromString(redact_traces(redactor, request.SerializeToString()))
    first, second = map(attributes_of, changed.resource_spans[0].scope_spans[0].spans)
    assert set(first) == {names.GEN_AI_INPUT_MESSAGES, names.GEN_AI_RESPONSE_ID, names.REDACTION_VERSION, names.REDACTION_COUNTS}
    assert first[names.REDACTION_VERSION].string_value == VERSION
    assert json.loads(first[names.REDACTION_COUNTS].string_value) == {"email": 2, "ip": 1}
    assert second == attributes_of(request.resource_spans[0].scope_spans[0].spans[1])
    assert redactor.counts == {"email": 2, "ip": 1}


def test_a_second_pass_adds_to_the_counts(redactor: Redactor) -> None:
    """The collector finds what the SDK's rules did not look for; the span has the counts of both."""
    source = Redactor(Rules(kinds=["email"]), "secret")
    once = redact_span(source, span_with(GEN_AI_INPUT_MESSAGES=f"{MAIL} 8.8.8.8").SerializeToString())
    twice = Span.FromString(redact_span(redactor, once))
    assert json.loads(attributes_of(twice)[names.REDACTION_COUNTS].string_value) == {"email": 1, "ip": 1}
    assert redact_span(redactor, twice.SerializeToString()) == twice.SerializeToString()


def test_names_that_join_records_stay(redactor: Redactor) -> None:
    """A response id or a release that looks like a telephone number stays, so that other records can name it."""
    kept = dict.fromkeys(("GEN_AI_RESPONSE_ID", "RELEASE", "TASK", "GEN_AI_TOOL_CALL_ID", "SUBJECT"), "+44 7700 900123")
    raw = span_with(**kept).SerializeToString()
    assert redact_span(redactor, raw) == raw


def test_a_conversation_id_with_a_finding_is_hashed_whole(redactor: Redactor) -> None:
    """A conversation named by a telephone number gets the same pseudonym in span and outcome; other names stay."""
    span = Span.FromString(redact_span(redactor, span_with(GEN_AI_CONVERSATION_ID="wa:+447700900123").SerializeToString()))
    outcome = redactor.outcome(Outcome({"conversation_id": "wa:+447700900123"}, "thumb", value=True))
    assert attributes_of(span)[names.GEN_AI_CONVERSATION_ID].string_value == outcome.target["conversation_id"]
    raw = span_with(GEN_AI_CONVERSATION_ID="session-12").SerializeToString()
    assert redact_span(redactor, raw) is raw


# --- user ids ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "key",
    ["user.id", "enduser.id", "user.email", "langfuse.user.id", "traceloop.association.properties.user_id", "mlflow.trace.user"],
)
def test_raw_user_ids_become_subjects(redactor: Redactor, key: str) -> None:
    """In the collector the user of another SDK gets the pseudonym that ours would send; token ids stay."""
    span = span_with(COMPLETION_TOKEN_IDS="ids")
    span.attributes.append(KeyValue(key=key, value=text("mia")))
    said = ExportTraceServiceRequest.FromString(redact_traces(redactor, traces(span).SerializeToString(), subjects=True))
    found = attributes_of(said.resource_spans[0].scope_spans[0].spans[0])
    assert found[key].string_value == subject_of("secret", "mia")
    assert set(found) == {key, names.COMPLETION_TOKEN_IDS}
    assert redactor.counts == {"user-id": 1}
    again = said.SerializeToString()
    assert redact_traces(redactor, again, subjects=True) == again


def test_user_ids_in_json_metadata_become_subjects_too(redactor: Redactor) -> None:
    """Some instrumentations put user ids into metadata, as text or as a number; words about users elsewhere stay."""
    span = span_with(GEN_AI_INPUT_MESSAGES='[{"role": "user", "user_id": "x"}]')
    span.attributes.append(KeyValue(key="metadata", value=text('{"user_id": "mia", "deep": [{"userId": 7}], "plan": "pro"}')))
    said = ExportTraceServiceRequest.FromString(redact_traces(redactor, traces(span).SerializeToString(), subjects=True))
    found = attributes_of(said.resource_spans[0].scope_spans[0].spans[0])
    mia, seven = (subject_of("secret", user) for user in ("mia", "7"))
    assert json.loads(found["metadata"].string_value) == {"user_id": mia, "deep": [{"userId": seven}], "plan": "pro"}
    assert found[names.GEN_AI_INPUT_MESSAGES].string_value == '[{"role": "user", "user_id": "x"}]'


# --- logs -------------------------------------------------------------------------------------------------------------
def test_log_bodies_and_attributes_are_redacted(redactor: Redactor, pseudonym: str) -> None:
    """Message events hold content too; one that was changed says so."""
    request = ExportLogsServiceRequest()
    log = request.resource_logs.add().scope_logs.add().log_records.add(event_name="gen_ai.user.message")
    log.body.kvlist_value.values.add(key="content").value.string_value = MAIL
    log.attributes.add(key="x").value.string_value = MAIL
    said = ExportLogsServiceRequest.FromString(redact_logs(redactor, request.SerializeToString()))
    found = said.resource_logs[0].scope_logs[0].log_records[0]
    assert found.body.kvlist_value.values[0].value.string_value == attributes_of(found)["x"].string_value == pseudonym
    assert json.loads(attributes_of(found)[names.REDACTION_COUNTS].string_value) == {"email": 2}


def test_outcomes_among_the_logs_are_left_to_who_knows_their_fields(redactor: Redactor) -> None:
    """An outcome has ids that must stay and texts that must not; only `Redactor.outcome` tells them apart."""
    outcome = Outcome({"trace_id": "1" * 32}, "edit", final_text=MAIL)
    raw = to_logs_request(outcome, tenant="acme", received_ns=1).SerializeToString()
    assert redact_logs(redactor, raw) is raw


# --- what goes wrong --------------------------------------------------------------------------------------------------
def test_content_that_cannot_be_checked_goes_and_the_span_stays(redactor: Redactor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content that cannot be checked does not pass: the attribute is dropped and counted, all else stays."""

    def broken(self: Redactor, value: str, found: Any) -> str:
        if "poison" in value:
            raise RuntimeError(value)
        return value

    span = span_with(GEN_AI_INPUT_MESSAGES=f"poison {MAIL}", GEN_AI_RESPONSE_ID="r1", GEN_AI_OUTPUT_MESSAGES="fine")
    monkeypatch.setattr(Redactor, "text", broken)
    said = Span.FromString(redact_span(redactor, span.SerializeToString()))
    assert MAIL not in str(said)
    assert set(attributes_of(said)) == {
        names.GEN_AI_RESPONSE_ID,
        names.GEN_AI_OUTPUT_MESSAGES,
        names.REDACTION_VERSION,
        names.REDACTION_COUNTS,
    }
    assert redactor.counts == {"unreadable": 1}


def test_json_too_deep_to_read_does_not_leave(redactor: Redactor) -> None:
    """A list that is nested too deeply to be read does not pass either."""
    deep = "[" * 100_000 + f'"{MAIL}"' + "]" * 100_000
    said = Span.FromString(redact_span(redactor, span_with(GEN_AI_INPUT_MESSAGES=deep).SerializeToString()))
    assert attributes_of(said)[names.GEN_AI_INPUT_MESSAGES].string_value == UNREADABLE


def test_bytes_that_are_no_message_come_back_as_they_are(redactor: Redactor) -> None:
    """The code that reads them next refuses them with a better reason."""
    raw = b"\xff" + MAIL.encode()
    assert redact_traces(redactor, raw) is raw


def test_the_bytes_of_a_user_attribute_are_seen_before_parsing(redactor: Redactor) -> None:
    """The prefilter must not miss a key that the full reading would change."""
    for key in (
        "user.id",
        "enduser.id",
        "enduser.pseudo.id",
        "user_id",
        "userId",
        "user.name",
        "user.email",
        "user.full_name",
        "user",
    ):
        raw = traces(Span(attributes=[KeyValue(key=key, value=text("mia"))])).SerializeToString()
        assert redaction._USER.fullmatch(key) and redaction._USER_BYTES.search(raw), key
