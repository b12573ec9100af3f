"""What an app's SDK did not redact is redacted by the collector before it is stored, by its tenant's rules."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.testclient import TestClient

from nightschool import semconv
from nightschool.config.reader import parse_config
from nightschool.config.redactors import redactors
from nightschool.errors import ConfigError
from nightschool.keys import KeyRing, hash_key, subject_of
from nightschool.outcomes.record import Outcome, from_log_record, to_logs_request
from nightschool.stream import Stream
from nightschool_collector.app import create_app

MAIL = "anna@example.com"
KEYS = {"acme": "key-of-acme", "globex": "key-of-globex", "open": "key-of-open"}
SETTINGS = f"""
[tenants.acme]
key_sha256 = ["{hash_key(KEYS["acme"])}"]
[tenants.globex]
key_sha256 = ["{hash_key(KEYS["globex"])}"]
privacy.allow = ["{MAIL}"]
privacy.patterns = ["ticket: TCK-[0-9]{{6}}"]
[tenants.open]
key_sha256 = ["{hash_key(KEYS["open"])}"]
privacy.enabled = false
"""


@pytest.fixture
def client(stream: Stream) -> TestClient:
    config = parse_config(SETTINGS, base=Path())
    keys = KeyRing({name: tenant.key_sha256 for name, tenant in config.tenants.items()})
    return TestClient(create_app(stream, keys, 1 << 20, redactors=redactors(config)))


def post(
    client: TestClient, path: str, body: Any, *, tenant: str = "acme", form: str = "application/x-protobuf", **headers: str
) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"authorization": f"Bearer {KEYS[tenant]}", "content-type": form, **headers}
    reply = client.post(path, content=content, headers=sent)
    assert reply.status_code in (200, 202), reply.text
    return reply


def stored(stream: Stream, topic: str) -> list[bytes]:
    ends = stream.end_offsets(topic)
    return [record.value for number in ends for record in stream.read(topic, number, 0, ends[number])]


def foreign_span(*, words: str = f"write to {MAIL}", user: str = "mia", trace: int = 1) -> ExportTraceServiceRequest:
    """A span as OpenInference writes it."""
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(trace_id=trace.to_bytes(16, "big"), span_id=bytes(7) + b"1", name="ChatCompletion")
    )
    for key, value in (("llm.input_messages.0.message.content", words), ("user.id", user)):
        span.attributes.add(key=key).value.string_value = value
    return request


def only_attributes(stream: Stream) -> dict[str, str]:
    (value,) = stored(stream, "ns.otlp_spans")
    (span,) = ExportTraceServiceRequest.FromString(value).resource_spans[0].scope_spans[0].spans
    return {item.key: item.value.string_value for item in span.attributes}


@pytest.mark.parametrize("form", ["protobuf", "json", "gzip"])
def test_a_foreign_sdks_span_is_stored_redacted(client: TestClient, stream: Stream, form: str) -> None:
    """In every encoding: the address is a pseudonym, the raw user id the subject that our own SDK would have sent."""
    raw = foreign_span().SerializeToString()
    if form == "gzip":
        post(client, "/v1/traces", gzip.compress(raw), **{"content-encoding": "gzip"})
    elif form == "json":
        span: dict[str, Any] = {"traceId": "0" * 31 + "1", "spanId": "0" * 15 + "1", "name": "ChatCompletion"}
        words = {"llm.input_messages.0.message.content": f"write to {MAIL}", "user.id": "mia"}
        span |= {"attributes": [{"key": key, "value": {"stringValue": value}} for key, value in words.items()]}
        post(client, "/v1/traces", {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}, form="application/json")
    else:
        post(client, "/v1/traces", raw)
    found = only_attributes(stream)
    assert found["llm.input_messages.0.message.content"].startswith("write to <EMAIL_")
    assert found["user.id"] == subject_of(hash_key(KEYS["acme"]), "mia")


def test_bytes_without_findings_are_stored_as_they_came(client: TestClient, stream: Stream) -> None:
    """The fast path: one trace, nothing found, the very bytes of the request."""
    raw = foreign_span(words="hello", user="0" * 32).SerializeToString()
    post(client, "/v1/traces", raw)
    assert stored(stream, "ns.otlp_spans") == [raw]


def test_each_tenant_has_its_own_rules_and_pseudonyms(client: TestClient, stream: Stream) -> None:
    """One tenant's allowed values and patterns are not another's; without redaction everything is stored as it came."""
    for tenant in KEYS:
        post(client, "/v1/traces", foreign_span(words=f"{MAIL} TCK-123456", trace=1).SerializeToString(), tenant=tenant)
    found = {}
    for number in stream.end_offsets("ns.otlp_spans"):
        for record in stream.read("ns.otlp_spans", number, 0, 9):
            span = ExportTraceServiceRequest.FromString(record.value).resource_spans[0].scope_spans[0].spans[0]
            found[record.headers["ns-tenant"].decode()] = [item.value.string_value for item in span.attributes][:2]
    assert found["acme"][0].startswith("<EMAIL_") and found["acme"][0].endswith("TCK-123456")
    assert found["globex"][0].startswith(f"{MAIL} <TICKET_")
    assert found["open"] == [f"{MAIL} TCK-123456", "mia"]
    assert len({subject for _, subject in found.values()}) == 3


def test_outcomes_are_stored_redacted_however_they_come(client: TestClient, stream: Stream) -> None:
    """As JSON and as an OTLP event: the same pseudonym, and the answer names the event that is stored."""
    body = {"target": {"trace_id": "1" * 32}, "name": "reply", "edit": {"final_text": f"Dear {MAIL}"}, "comment": MAIL}
    reply = post(client, "/v1/outcomes", body | {"source": {"kind": "human", "id": "ann"}}, form="application/json")
    outcome = Outcome({"trace_id": "2" * 32}, "reply", final_text=f"Dear {MAIL}", source_id="ann", event_id="e2")
    post(client, "/v1/logs", to_logs_request(outcome, tenant="acme", received_ns=1).SerializeToString())
    found = {
        (
            said := from_log_record(ExportLogsServiceRequest.FromString(value).resource_logs[0].scope_logs[0].log_records[0])
        ).id: said
        for value in stored(stream, "ns.outcomes")
    }
    first, second = found[reply.json()["event_id"]], found["e2"]
    assert first.final_text == second.final_text and str(first.final_text).startswith("Dear <EMAIL_")
    assert first.source_id == second.source_id == subject_of(hash_key(KEYS["acme"]), "ann")
    assert not any(MAIL.encode() in value for value in stored(stream, "ns.outcomes"))


def test_an_outcome_that_is_refused_is_kept_redacted(client: TestClient, stream: Stream) -> None:
    """Nobody knows what is in the fields of such an event: the dead letter and its reason hold no name that it came with."""
    outcome = Outcome({"conversation_id": MAIL}, "reply", final_text=f"Dear {MAIL}", comment=MAIL, source_id="rater-7")
    request = to_logs_request(outcome, tenant="acme", received_ns=1)
    attributes = request.resource_logs[0].scope_logs[0].log_records[0].attributes
    next(item for item in attributes if item.key == semconv.OUTCOME_OP).value.string_value = f"set {MAIL}"
    post(client, "/v1/logs", request.SerializeToString())
    ends = stream.end_offsets("ns.dlq")
    (letter,) = [record for number in ends for record in stream.read("ns.dlq", number, 0, ends[number])]
    assert b"<EMAIL_" in letter.value and MAIL.encode() not in letter.value and b"rater-7" not in letter.value
    assert MAIL.encode() not in letter.headers["ns-dlq-reason"]


def test_a_replayed_outcome_is_still_a_duplicate(client: TestClient) -> None:
    """Redaction gives equal bodies equal records, so that a webhook sent twice counts once."""
    body = {"target": {"trace_id": "1" * 32}, "name": "reply", "value": MAIL, "source": {"kind": "human", "id": "ann"}}
    replies = [post(client, "/v1/outcomes", body, form="application/json").json() for _ in range(2)]
    assert [reply["status"] for reply in replies] == ["accepted", "duplicate"]
    assert replies[0]["event_id"] == replies[1]["event_id"]


def test_log_records_are_stored_redacted(client: TestClient, stream: Stream) -> None:
    """Message events hold what people wrote."""
    request = ExportLogsServiceRequest()
    log = request.resource_logs.add().scope_logs.add().log_records.add(event_name="gen_ai.user.message", trace_id=b"t" * 16)
    log.body.kvlist_value.values.add(key="content").value.string_value = MAIL
    post(client, "/v1/logs", request.SerializeToString())
    (value,) = stored(stream, "ns.otlp_logs")
    assert MAIL.encode() not in value and b"<EMAIL_" in value


def test_the_subject_key_file_is_the_secret_of_the_pseudonyms(tmp_path: Path) -> None:
    """With it pseudonyms stay the same when API keys change; a missing or empty file stops the start."""
    settings = '[tenants.acme]\nkey_sha256 = ["' + hashlib.sha256(b"k").hexdigest() + '"]\nsubject_key_file = "subject.key"\n'
    config = parse_config(settings, base=tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        redactors(config)
    (tmp_path / "subject.key").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        redactors(config)
    (tmp_path / "subject.key").write_text("long-lived\n")
    assert redactors(config)["acme"].subject("mia") == subject_of("long-lived", "mia")


def test_findings_are_counted_by_kind(client: TestClient) -> None:
    """At /metrics, all tenants together; a tenant's own kinds under one name."""
    post(client, "/v1/traces", foreign_span(words=f"{MAIL} 8.8.8.8").SerializeToString())
    post(client, "/v1/traces", foreign_span(words="TCK-123456").SerializeToString(), tenant="globex")
    found = [line for line in client.get("/metrics").text.splitlines() if line.startswith("nightschool_collector_redacted_total")]
    assert found == [
        f'nightschool_collector_redacted_total{{kind="{kind}"}} {number}'
        for kind, number in (("email", 1), ("ip", 1), ("user-id", 2), ("own", 1))
    ]
