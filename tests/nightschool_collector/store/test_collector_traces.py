"""Spans in, records out: one trace a record, bytes unchanged, and a reason for every rejected span."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import zstandard
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from nightschool_collector.store.spans import split_spans

SPANS = "ns.otlp_spans"


def response_of(answer: Any) -> ExportTraceServiceResponse:
    """The OTLP response in an HTTP answer of either format."""
    assert answer.status_code == 200, answer.text
    response = ExportTraceServiceResponse()
    if answer.headers["content-type"] == "application/json":
        json_format.Parse(answer.content, response)
    else:
        assert answer.headers["content-type"] == "application/x-protobuf"
        response.ParseFromString(answer.content)
    return response


def spans_of(value: bytes) -> list[tuple[str, str, int]]:
    """Resource, scope and number of each span in a record."""
    request = ExportTraceServiceRequest.FromString(value)
    return [
        (group.resource.attributes[0].value.string_value, scope.scope.name, span.attributes[0].value.int_value)
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def test_a_request_of_one_trace_is_stored_byte_for_byte(collector: Any, requests: Any) -> None:
    """The received bytes of a single trace are the record, also in an encoding that we would not write ourselves."""
    body = requests.spans(7, 7).SerializeToString() + b"\xfa\x3f\x03new"  # a field of a later OTLP
    response = response_of(collector.post("/v1/traces", body))
    assert not response.HasField("partial_success")
    (record,) = collector.stored(SPANS)
    assert (record.key, record.value) == (b"%032x" % 7, body)


def test_records_carry_the_tenant_of_the_key(collector: Any, requests: Any) -> None:
    """The tenant in the headers is that of the key; a resource that claims another is counted, and the client is told."""
    request = requests.spans(1)
    request.resource_spans[0].resource.attributes.add(key="nightschool.tenant.id").value.string_value = "acme"
    partial = response_of(collector.post("/v1/traces", request, tenant="globex")).partial_success
    assert partial.rejected_spans == 0
    assert partial.error_message == "nightschool.tenant.id names the tenant 'acme', but the key is one of 'globex': stored there"
    assert collector.receiver.counters.total("other_tenant_requests", "globex", "traces") == 1
    (record,) = collector.stored(SPANS)
    assert dict(record.headers) == {
        "ns-tenant": b"globex",
        "ns-schema": b"1",
        "ns-recv-ms": b"1790000000123",
        "content-type": b"application/x-protobuf",
    }


def test_the_tenant_of_the_key_may_be_named(collector: Any, requests: Any) -> None:
    """Our own SDK names its tenant in every resource, and is told nothing when it is right."""
    request = requests.spans(1)
    request.resource_spans[0].resource.attributes.add(key="nightschool.tenant.id").value.string_value = "acme"
    assert not response_of(collector.post("/v1/traces", request)).HasField("partial_success")
    assert collector.receiver.counters.total("other_tenant_requests", "acme", "traces") == 0


def test_each_record_holds_one_trace(collector: Any, requests: Any) -> None:
    """A request of several traces becomes one record each, keyed by its trace id; resource, scope and order stay."""
    request = requests.spans(1, 2, 1, 3, resource="first")
    request.MergeFrom(requests.spans(2, 2, resource="second"))
    assert collector.post("/v1/traces", request).status_code == 200
    found = {record.key: spans_of(record.value) for record in collector.stored(SPANS)}
    assert found == {
        b"%032x" % 1: [("first", "tests", 1), ("first", "tests", 3)],
        b"%032x" % 2: [("first", "tests", 2), ("second", "tests", 1), ("second", "tests", 2)],
        b"%032x" % 3: [("first", "tests", 4)],
    }


def test_splitting_loses_no_field(collector: Any, requests: Any) -> None:
    """The records of a split request together hold all that the request held, schema URLs included."""
    request = requests.spans(1, 2)
    assert collector.post("/v1/traces", request).status_code == 200
    for record in collector.stored(SPANS):
        (group,) = ExportTraceServiceRequest.FromString(record.value).resource_spans
        (original,) = request.resource_spans
        assert (group.resource, group.schema_url) == (original.resource, original.schema_url)
        (scope,) = group.scope_spans
        assert (scope.scope, scope.schema_url) == (original.scope_spans[0].scope, original.scope_spans[0].schema_url)
        assert scope.spans[0] == original.scope_spans[0].spans[int(record.key, 16) - 1]


def test_json_ids_are_hexadecimal(collector: Any, requests: Any) -> None:
    """OTLP/JSON gives the same record as protobuf: hex ids, int64 as string or number, enums as numbers."""
    trace, span, parent = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", "EEE19B7EC3C1B173"
    body = {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "app"}}]},
                "scopeSpans": [
                    {
                        "scope": {"name": "tests"},
                        "spans": [
                            {
                                "traceId": trace,
                                "spanId": span,
                                "parentSpanId": parent,
                                "name": "chat m",
                                "kind": 3,
                                "startTimeUnixNano": "1544712660000000000",
                                "endTimeUnixNano": 1544712661000000000,
                                "attributes": [{"key": "n", "value": {"intValue": "5"}}],
                                "links": [{"traceId": trace.upper(), "spanId": span}],
                                "status": {"code": 2},
                                "fieldOfALaterVersion": {"a": [1]},
                            }
                        ],
                    }
                ],
            }
        ],
        "another": None,
    }
    expected = ExportTraceServiceRequest()
    group = expected.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = "app"
    scope = group.scope_spans.add()
    scope.scope.name = "tests"
    stored = scope.spans.add(
        trace_id=bytes.fromhex(trace), span_id=bytes.fromhex(span), parent_span_id=bytes.fromhex(parent), name="chat m", kind=3
    )
    stored.start_time_unix_nano, stored.end_time_unix_nano = 1544712660000000000, 1544712661000000000
    stored.attributes.add(key="n").value.int_value = 5
    stored.links.add(trace_id=bytes.fromhex(trace), span_id=bytes.fromhex(span))
    stored.status.code = 2
    answer = collector.post("/v1/traces", body, form="application/json; charset=utf-8")
    assert (answer.status_code, answer.json()) == (200, {})
    (record,) = collector.stored(SPANS)
    assert record.key == trace.encode()
    assert ExportTraceServiceRequest.FromString(record.value) == expected


@pytest.mark.parametrize(
    ("trace_id", "span_id", "reason"),
    [
        (b"", b"\1" * 8, "trace id '' is not 16 bytes"),
        (bytes(16), b"\1" * 8, "all zero"),
        (b"\1" * 15, b"\1" * 8, "trace id '010101"),
        (b"\1" * 16, b"", "span id '' is not 8 bytes"),
        (b"\1" * 16, bytes(8), "all zero"),
    ],
)
def test_spans_with_impossible_ids_are_rejected(
    collector: Any, requests: Any, trace_id: bytes, span_id: bytes, reason: str
) -> None:
    """A span that can never be joined is counted with the reason in partial_success; the others are stored."""
    request = requests.spans(5, 6, 5)
    bad = request.resource_spans[0].scope_spans[0].spans[1]
    bad.trace_id, bad.span_id = trace_id, span_id
    partial = response_of(collector.post("/v1/traces", request)).partial_success
    assert partial.rejected_spans == 1
    assert reason in partial.error_message
    assert [spans_of(record.value) for record in collector.stored(SPANS)] == [[("app", "tests", 1), ("app", "tests", 3)]]


def test_partial_success_in_json(collector: Any) -> None:
    """A JSON client gets its partial success in JSON."""
    spans = [{"traceId": "00" * 16, "spanId": "11" * 8}, {"traceId": "22" * 16, "spanId": "11" * 8}]
    body = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    answer = collector.post("/v1/traces", body, form="application/json")
    assert response_of(answer).partial_success.rejected_spans == 1
    assert answer.json()["partialSuccess"]["rejectedSpans"] == "1"
    assert [record.key for record in collector.stored(SPANS)] == [b"22" * 16]


def test_a_request_without_spans_stores_nothing(collector: Any) -> None:
    """An empty request is valid, as the specification says, and leaves no record."""
    assert response_of(collector.post("/v1/traces", b"")) == ExportTraceServiceResponse()
    assert response_of(collector.post("/v1/traces", {}, form="application/json")) == ExportTraceServiceResponse()
    assert collector.everything_stored() == []


def test_gzip_is_read(collector: Any, requests: Any) -> None:
    """A compressed request, also one of several gzip members, is stored as the plain one."""
    body = requests.spans(9).SerializeToString()
    for sent in (gzip.compress(body), gzip.compress(body[:10]) + gzip.compress(body[10:])):
        assert collector.post("/v1/traces", sent, content_encoding="GZIP").status_code == 200
    assert collector.post("/v1/traces", body, content_encoding="identity").status_code == 200
    assert [record.value for record in collector.stored(SPANS)] == [body] * 3


def test_zstd_is_read(collector: Any, requests: Any) -> None:
    """A body of zstd frames, with or without a checksum and a declared size, is stored as the plain one."""
    body = requests.spans(9).SerializeToString()
    checked, streamed = zstandard.ZstdCompressor(write_checksum=True), zstandard.ZstdCompressor().compressobj()
    for sent in (
        zstandard.compress(body),
        checked.compress(body[:10]) + zstandard.compress(body[10:]),
        streamed.compress(body) + streamed.flush(),
    ):
        assert collector.post("/v1/traces", sent, content_encoding="zstd").status_code == 200
    assert [record.value for record in collector.stored(SPANS)] == [body] * 3


def test_any_order_and_encoding_of_fields_is_split_alike(collector: Any, requests: Any) -> None:
    """What protobuf allows and no exporter does is read too: ids last, spans before their scope, long encodings."""
    first, second = (b"\x11\x22" * 8, b"\1" * 8), (b"\x33" * 16, b"\2" * 8)

    def field(number: int, payload: bytes, *, long: bool = False) -> bytes:
        tag, size = number << 3 | 2, len(payload)
        return (bytes([tag | 0x80, 0, size | 0x80, 0]) if long else bytes([tag, size])) + payload

    spans = [
        field(5, b"name") + field(2, span_id) + field(1, bytes(16)) + field(1, trace_id) for trace_id, span_id in (first, second)
    ]
    scope = field(2, spans[0]) + field(1, field(1, b"tests")) + b"\x78\x05" + field(2, spans[1], long=True)
    request = field(1, field(2, scope) + field(1, b""), long=True) + b"\x18\x07"
    assert collector.post("/v1/traces", request).status_code == 200
    records = {record.key: record.value for record in collector.stored(SPANS)}
    assert set(records) == {first[0].hex().encode(), second[0].hex().encode()}
    for value in records.values():
        (group,) = ExportTraceServiceRequest.FromString(value).resource_spans
        assert (group.scope_spans[0].scope.name, len(group.scope_spans[0].spans)) == ("tests", 1)
        assert b"\x78\x05" in value  # an unknown field of the scope


def test_groups_are_read_and_left_out(collector: Any, requests: Any) -> None:
    """A request with a group, which OTLP never has, is split all the same."""
    group = b"\x7b\x08\x01\x7c"
    body = requests.spans(1, 2).SerializeToString() + group
    inside = requests.spans(1, 2)
    inside.resource_spans[0].scope_spans[0].MergeFromString(group)
    assert collector.post("/v1/traces", body).status_code == 200
    assert collector.post("/v1/traces", inside).status_code == 200
    assert len(collector.stored(SPANS)) == 4


def test_a_trace_larger_than_a_record_is_several_records(stream: Any, requests: Any) -> None:
    """A big trace is split by spans under one key; a span that no record can hold is rejected, the rest is stored."""
    request = requests.spans(*[1] * 12)
    spans = request.resource_spans[0].scope_spans[0].spans
    for span in spans:
        span.attributes.add(key="big").value.string_value = "x" * (1 << 20)
    spans[3].attributes[-1].value.string_value = "x" * (8 << 20)
    found = split_spans(request.SerializeToString())
    assert [letter.reason for letter in found.rejected.values()] == [
        "span 0000000000000004 has more than 7995904 bytes: shorten its attributes"
    ]
    assert {key for key, _ in found.records()} == {b"%032x" % 1}
    assert all(len(value) <= 4 << 20 for _, value in found.records())
    numbers = [number for _, value in found.records() for _, _, number in spans_of(value)]
    assert numbers == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]


def test_json_and_protobuf_of_one_request_are_stored_equal(collector: Any, requests: Any) -> None:
    """The same many-trace request in both formats gives the same records."""
    request = requests.spans(1, 2, 1)
    data = json.loads(json_format.MessageToJson(request))
    for span, original in zip(
        data["resourceSpans"][0]["scopeSpans"][0]["spans"], request.resource_spans[0].scope_spans[0].spans, strict=True
    ):
        span["traceId"], span["spanId"] = original.trace_id.hex(), original.span_id.hex()
    assert collector.post("/v1/traces", request).status_code == 200
    assert collector.post("/v1/traces", data, form="application/json").status_code == 200
    values = [record.value for record in sorted(collector.stored(SPANS), key=lambda record: (record.key, record.offset))]
    assert values[0::2] == values[1::2]
    assert len(values) == 4
