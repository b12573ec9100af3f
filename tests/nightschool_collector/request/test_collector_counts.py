"""What a body holds is counted in its bytes as a parser would find it, however the bytes are cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool.errors import RecordError
from nightschool_collector.request.body_count import MAX_ITEMS, BodyCount
from nightschool_collector.request.json_count import PART_BYTES, JsonCount
from nightschool_collector.request.protobuf_count import ProtobufCount
from nightschool_collector.request.refusal import RefusedError


def counted(count: BodyCount, body: bytes, cuts: Sequence[int] = ()) -> Any:
    """`count` after it was given the body in pieces."""
    at = 0
    for cut in sorted(cuts):
        count.add(body[at : at + cut])
        at += cut
    count.add(body[at:])
    count.finish()
    return count


@st.composite
def requests_on_the_wire(draw: st.DrawFn) -> bytes:
    """Requests as protobuf writes them, with fields that it does not know."""
    request = ExportTraceServiceRequest()
    for sizes in draw(st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=3)):
        resource = request.resource_spans.add(schema_url=draw(st.text(max_size=200)))
        for size in sizes:
            scope = resource.scope_spans.add()
            scope.MergeFromString(
                draw(st.sampled_from([b"", b"\x78\x05", b"\xfa\x3f\x03new", b"\x7b\x12\x00\x7c", b"\x79" + bytes(8)]))
            )
            for _ in range(size):
                scope.spans.add(name=draw(st.text(max_size=300)), trace_id=draw(st.binary(max_size=16)))
    return request.SerializeToString()


def frames(request: ExportTraceServiceRequest) -> int:
    """Resources, scopes and spans of a request."""
    scopes = [scope for resource in request.resource_spans for scope in resource.scope_spans]
    return len(request.resource_spans) + len(scopes) + sum(len(scope.spans) for scope in scopes)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(body=requests_on_the_wire(), cuts=st.lists(st.integers(0, 40), max_size=20))
def test_items_are_counted_as_protobuf_finds_them(body: bytes, cuts: list[int]) -> None:
    """Resources, scopes and spans of any request in any pieces, past unknown fields and groups."""
    assert counted(ProtobufCount(), body, cuts).num_items == frames(ExportTraceServiceRequest.FromString(body))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    body=st.one_of(
        st.binary(max_size=60), requests_on_the_wire().flatmap(lambda b: st.binary(max_size=4).map(lambda x: b[:-3] + x))
    )
)
def test_what_is_no_protobuf_is_refused_or_counted(body: bytes) -> None:
    """Any bytes are counted or are a `RecordError`; what protobuf reads is never refused and never counted short."""
    try:
        expected = frames(ExportTraceServiceRequest.FromString(body))
    except DecodeError:
        expected = 0
    try:
        found = counted(ProtobufCount(), body).num_items
    except RecordError:
        assert expected == 0
    else:
        assert found >= expected


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    data=st.recursive(
        st.one_of(st.text(alphabet='ab"\\{[,:\u00e9'), st.integers()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    ),
    cuts=st.lists(st.integers(0, 9), max_size=20),
)
def test_json_is_counted_outside_of_strings(data: Any, cuts: list[int]) -> None:
    """Whatever stands in strings, and wherever the text is cut, containers and separators are counted and nothing else."""

    def separators(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + len(value) + max(0, len(value) - 1) + sum(map(separators, value.values()))
        if isinstance(value, list):
            return 1 + max(0, len(value) - 1) + sum(map(separators, value))
        return 0

    body = json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert counted(JsonCount(), body, cuts).num_bytes == PART_BYTES * separators(data)


@pytest.mark.parametrize(
    ("count", "body"),
    [
        (ProtobufCount, b"\x0a\x00" * (MAX_ITEMS + 20)),
        (lambda: JsonCount(1000), b"[" + b"{}," * 1000),
    ],
)
def test_too_much_is_refused_with_what_is_allowed(count: Callable[[], BodyCount], body: bytes) -> None:
    """The refusal is 413 with the limit, and comes before the body is complete."""
    with pytest.raises(RefusedError, match="as many as are allowed: send smaller batches") as caught:
        count().add(body)
    assert (caught.value.status, caught.value.reason) == (413, "too_many")
