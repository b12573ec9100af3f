"""Records that another collector stored: read by the tenant's rules, they are what ours would have stored."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool import semconv as names
from nightschool.keys import subject_of
from nightschool.outcomes.record import Outcome, from_log_record, to_logs_request
from nightschool.redaction import Rules
from nightschool.redaction.redactor import Redactor
from nightschool.stream import Record, Stream, open_stream
from nightschool_nightly.episodes.redacted_stream import RedactedStream

MAIL = "anna@example.com"
OURS = {names.HEADER_TENANT: b"acme", names.HEADER_RECEIVED_MS: b"1"}


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    with open_stream(f"sqlite:{tmp_path / 'stream.db'}", partitions=1) as stream:
        yield stream


@pytest.fixture
def redactor() -> Redactor:
    return Redactor(Rules(), "secret")


def span() -> bytes:
    request = ExportTraceServiceRequest()
    found = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8)
    for key, value in (("gen_ai.prompt", f"write to {MAIL}"), ("user.id", "mia")):
        found.attributes.add(key=key).value.string_value = value
    return request.SerializeToString()


def values(stream: Stream, topic: str) -> list[bytes]:
    return [record.value for record in stream.read(topic, 0, 0, 9)]


def test_a_foreign_collectors_span_is_read_redacted(stream: Stream, redactor: Redactor) -> None:
    """Texts and user ids are redacted, with or without a tenant header; the stored records stay as they are."""
    stream.append(names.TOPIC_SPANS, [Record(b"k", span(), {}), Record(b"k", span(), {names.HEADER_TENANT: b"acme"})])
    read = values(RedactedStream(stream, redactor), names.TOPIC_SPANS)
    assert len(set(read)) == 1 and MAIL.encode() not in read[0] and b"<EMAIL_" in read[0]
    assert subject_of("secret", "mia").encode() in read[0]
    assert values(stream, names.TOPIC_SPANS) == [span(), span()]


def test_what_our_collector_stored_is_read_as_it_is(stream: Stream, redactor: Redactor) -> None:
    """It was redacted by the rules of its time, which may have been less strict."""
    stream.append(names.TOPIC_SPANS, [Record(b"k", span(), OURS)])
    assert values(RedactedStream(stream, redactor), names.TOPIC_SPANS) == [span()]


@pytest.mark.parametrize("topic", [names.TOPIC_LOGS, names.TOPIC_OUTCOMES])
def test_outcomes_of_a_foreign_collector_are_read_redacted(stream: Stream, redactor: Redactor, topic: str) -> None:
    """They get the same pseudonyms as the trace they are about; everything else in them stays."""
    outcome = Outcome({"trace_id": "1" * 32}, "reply", final_text=f"Dear {MAIL}", source_id="ann", event_id="e", occurred_at_ns=5)
    stream.append(topic, [Record(b"k", to_logs_request(outcome, tenant="acme", received_ns=7).SerializeToString(), {})])
    (value,) = values(RedactedStream(stream, redactor), topic)
    request = ExportLogsServiceRequest.FromString(value)
    (log,) = request.resource_logs[0].scope_logs[0].log_records
    assert from_log_record(log) == redactor.outcome(outcome) != outcome
    assert log.observed_time_unix_nano == 7
    assert request.resource_logs[0].resource.attributes[0].value.string_value == "acme"


def test_records_that_make_no_sense_pass_through(stream: Stream, redactor: Redactor) -> None:
    """What reads them next counts them as unreadable and copies them to the dead-letter topic."""
    for topic in (names.TOPIC_SPANS, names.TOPIC_LOGS, names.TOPIC_OUTCOMES):
        stream.append(topic, [Record(b"k", b"\xff anna@example.com", {})])
        assert values(RedactedStream(stream, redactor), topic) == [b"\xff anna@example.com"]


def test_another_process_reads_the_same(stream: Stream, redactor: Redactor) -> None:
    """A large day is read by several processes: the wrapped stream can be sent to them, with its rules and secret."""
    stream.append(names.TOPIC_SPANS, [Record(b"k", span(), {})])
    with pickle.loads(pickle.dumps(RedactedStream(stream, redactor))) as copy:
        assert values(copy, names.TOPIC_SPANS) == values(RedactedStream(stream, redactor), names.TOPIC_SPANS)


def test_a_redactors_digest_tells_rules_and_secrets_apart() -> None:
    """The manifest holds it: with another rule or secret it is another night."""
    digests = {Redactor(*made).digest for made in ((Rules(), "a"), (Rules(), "b"), (Rules(kinds=["ip"]), "a"), (Rules(), "a"))}
    assert len(digests) == 3
