"""What can never be stored where it belongs: answered as rejected, kept in ns.dlq with its bytes and the reason."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from nightschool.errors import StreamUnavailable
from nightschool_collector.request.otlp import Format
from nightschool_collector.store.writer import RecordWriter


def test_a_rejected_span_is_a_dead_letter(collector: Any, requests: Any) -> None:
    """The span is kept as it came, unknown fields too, with its tenant, the reason and the intended topic."""
    request = requests.spans(0, 7)
    bad = request.resource_spans[0].scope_spans[0].spans[0]
    unknown = b"\xfa\x3f\x03new"
    bad.MergeFromString(unknown)
    assert collector.post("/v1/traces", request).status_code == 200
    (letter,) = collector.stored("ns.dlq")
    assert letter.headers["ns-tenant"] == b"acme"
    assert letter.headers["ns-dlq-topic"] == b"ns.otlp_spans"
    assert b"all zero" in letter.headers["ns-dlq-reason"]
    (group,) = ExportTraceServiceRequest.FromString(letter.value).resource_spans
    assert group.resource == request.resource_spans[0].resource
    assert group.scope_spans[0].spans[0] == bad
    assert unknown in letter.value
    assert [record.key for record in collector.stored("ns.otlp_spans")] == [b"%032x" % 7]


def test_many_rejected_spans_are_one_letter_for_each_reason(collector: Any, requests: Any) -> None:
    """A request cannot multiply: the letter holds the first span of its reason and says how many there were."""
    request = requests.spans(*[0] * 500, 7, 8)
    spans = request.resource_spans[0].scope_spans[0].spans
    spans[-1].span_id = b""
    for number, span in enumerate(spans[:500]):
        span.trace_id = bytes(number % 15)  # the reason quotes it, and is the same all the same
    answer = collector.post("/v1/traces", request)
    assert ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans == 501
    letters = collector.stored("ns.dlq")
    assert sorted(letter.headers["ns-dlq-count"] for letter in letters) == [b"1", b"500"]
    first = next(letter for letter in letters if letter.headers["ns-dlq-count"] == b"500")
    (scope,) = ExportTraceServiceRequest.FromString(first.value).resource_spans[0].scope_spans
    assert list(scope.spans) == [spans[0]]
    assert collector.receiver.counters.total("rejected_items", "acme", "traces") == 501


def test_reasons_that_quote_what_came_are_bounded(collector: Any) -> None:
    """Evaluations that are wrong in a thousand ways are at most twenty letters, and all are counted."""
    request = ExportLogsServiceRequest()
    logs = request.resource_logs.add().scope_logs.add().log_records
    for number in range(1000):
        log = logs.add(event_name="gen_ai.evaluation.result", trace_id=b"\1" * 16)
        log.attributes.add(key="gen_ai.evaluation.score.value").value.string_value = f"wrong {number}"
    assert collector.post("/v1/logs", request).status_code == 200
    letters = collector.stored("ns.dlq")
    assert len(letters) <= 20
    assert sum(int(letter.headers["ns-dlq-count"]) for letter in letters) == 1000


def test_a_useless_evaluation_is_a_dead_letter(collector: Any) -> None:
    """An evaluation event that cannot be understood is kept, so that its sender can find it."""
    request = ExportLogsServiceRequest()
    logs = request.resource_logs.add().scope_logs.add().log_records
    logs.add(event_name="gen_ai.evaluation.result", trace_id=b"\1" * 16)
    logs.add(event_name="other", trace_id=b"\1" * 16)
    assert collector.post("/v1/logs", request).status_code == 200
    (letter,) = collector.stored("ns.dlq")
    assert (letter.key, letter.headers["ns-dlq-topic"]) == (b"01" * 16, b"ns.otlp_logs")
    assert len(collector.stored("ns.otlp_logs")) == 1


def test_what_no_record_can_hold_is_kept_in_parts(collector: Any, requests: Any) -> None:
    """The parts of a dead letter, put together, are the span that was larger than any record."""
    request = requests.spans(1)
    request.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="big").value.string_value = "x" * (9 << 20)
    writer: RecordWriter = collector.writer
    response = writer.traces("acme", request.SerializeToString(), Format.PROTOBUF, lambda num_bytes: None)
    assert response.partial_success.rejected_spans == 1
    letters = sorted(collector.stored("ns.dlq"), key=lambda letter: letter.headers["ns-dlq-part"])
    assert [letter.headers["ns-dlq-part"] for letter in letters] == [b"1/2", b"2/2"]
    assert ExportTraceServiceRequest.FromString(b"".join(letter.value for letter in letters)) == request


def test_no_letter_no_answer(collector: Any, requests: Any) -> None:
    """When the dead letter cannot be written the request is not acknowledged, so that nothing is lost."""
    append = collector.stream.append

    def only_spans(topic: str, records: Any) -> Any:
        if topic == "ns.dlq":
            raise StreamUnavailable("the disk is full")
        return append(topic, records)

    collector.stream.append = only_spans
    assert collector.post("/v1/traces", requests.spans(0, 1)).status_code == 503
