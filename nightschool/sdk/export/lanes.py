"""The two lanes of an app: spans by OTLP and outcomes by JSON. How each is encoded, sent, and its answer understood."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from nightschool.sdk.encoding import SpanEncoder
from nightschool.sdk.export.queue import Lane
from nightschool.sdk.span import SpanRecord


def span_lane(encoder: SpanEncoder) -> Lane[SpanRecord]:
    """Spans, as `POST /v1/traces` takes them."""
    return Lane(
        name="spans",
        path="/v1/traces",
        content_type="application/x-protobuf",
        encode=encoder.encode,
        wrap=encoder.wrap,
        count_rejected=_count_rejected_spans,
        max_batch_items=8192,  # never reached: a span counts as 1 KB or more, and a batch ends at 4 MiB
        splits_on=frozenset({413}),
    )


def outcome_lane(scrub: Callable[[bytes], bytes]) -> Lane[bytes]:
    """Outcomes, as `POST /v1/outcomes` takes them; `scrub` takes secrets out of the JSON of one."""
    return Lane(
        name="outcomes",
        path="/v1/outcomes",
        content_type="application/json",
        encode=scrub,
        wrap=_wrap_outcomes,
        count_rejected=_count_rejected_outcomes,
        max_batch_items=1000,  # the collector takes no more in one request
        splits_on=frozenset({400, 413}),  # 400: one outcome that is not understood may refuse the whole batch
    )


def _wrap_outcomes(bodies: Sequence[bytes]) -> Iterator[bytes]:
    yield b'{"outcomes":['
    for number, body in enumerate(bodies):
        yield b"," + body if number else body
    yield b"]}"


def _count_rejected_spans(body: bytes) -> int:
    try:
        return int(ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans)
    except DecodeError:  # an answer in another format, but with a status of success
        return 0


def _count_rejected_outcomes(body: bytes) -> int:
    """How many outcomes were not stored and never will be: each has a status of its own in the answer."""
    try:
        statuses = [item["status"] for item in json.loads(body)["outcomes"]]
    except (ValueError, KeyError, TypeError):  # an answer in another format, but with a status of success
        return 0
    return sum(status in ("rejected", "conflict") for status in statuses)
