"""A request is checked in pieces as protobuf would check it whole, and what it holds is bounded."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool.errors import RecordError
from nightschool_collector.request.refusal import RefusedError
from nightschool_collector.store import checking
from nightschool_collector.store.checking import check, count_parts


def messages_in(message: Message) -> int:
    """How many messages are in a message, at every depth."""
    found = 0
    for field, value in message.ListFields():
        if field.message_type is not None:
            children = value if field.is_repeated else [value]
            found += sum(1 + messages_in(child) for child in children)
    return found


def rich(requests: Any) -> ExportTraceServiceRequest:
    """A request with every kind of message that a span has, several of each."""
    request: ExportTraceServiceRequest = requests.spans(*range(1, 40), name="x" * 100)
    request.MergeFrom(requests.spans(*range(1, 5)))
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.events.add(name="e").attributes.add(key="k").value.array_value.values.add().bool_value = True
        span.links.add(trace_id=b"1" * 16)
        span.status.message = "done"
        inner = span.attributes.add(key="nested").value.kvlist_value.values.add(key="a")
        inner.value.array_value.values.add().kvlist_value.values.add(key="b").value.string_value = "c"
    return request


@pytest.mark.parametrize("piece", [1, 50, 500, 5_000, 1 << 20])
def test_any_size_of_piece_finds_the_same(requests: Any, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """A valid request is valid, and one broken anywhere inside a span is not, however small the pieces are."""
    monkeypatch.setattr(checking, "_PIECE_BYTES", piece)
    body = rich(requests).SerializeToString()
    check(body, ExportTraceServiceRequest)
    at = body.rindex(b"done")
    broken = body[:at] + b"\xff\xff\xff\xff" + body[at + 4 :]  # no UTF-8
    with pytest.raises(DecodeError):
        ExportTraceServiceRequest.FromString(broken)
    with pytest.raises(RecordError, match="not a valid protobuf ExportTraceServiceRequest"):
        check(broken, ExportTraceServiceRequest)


def test_parts_are_the_messages_at_every_depth(requests: Any) -> None:
    """Counting on the wire finds what protobuf builds."""
    request = rich(requests)
    assert count_parts(request.SerializeToString(), ExportTraceServiceRequest) == messages_in(request)


def test_more_parts_than_allowed_are_refused(requests: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One span may not hold so many attributes, events and links that its messages fill the memory."""
    request = requests.spans(1)
    span = request.resource_spans[0].scope_spans[0].spans[0]
    for _ in range(900):
        span.attributes.add()
    check(request.SerializeToString(), ExportTraceServiceRequest)
    monkeypatch.setattr(checking, "MAX_PARTS", 900)
    with pytest.raises(RefusedError, match="more than 900 attributes, values, events and links") as caught:
        check(request.SerializeToString(), ExportTraceServiceRequest)
    assert (caught.value.status, caught.value.reason) == (413, "too_many")


def test_nesting_is_bounded() -> None:
    """A value inside a value 101 times is refused by the count as by protobuf itself."""
    value = ExportTraceServiceRequest()
    inner = value.resource_spans.add().resource.attributes.add().value
    for _ in range(101):
        inner = inner.array_value.values.add()
    body = value.SerializeToString()
    with pytest.raises(RecordError, match="nested too deep"):
        count_parts(body, ExportTraceServiceRequest)
    with pytest.raises(RecordError, match="not a valid protobuf"):
        check(body, ExportTraceServiceRequest)
