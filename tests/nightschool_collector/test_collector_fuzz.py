"""Whatever is sent, the collector answers with its own words: never a 5xx."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks import fuzz
from nightschool_collector.store import spans

ROUTES = ["/v1/traces", "/v1/logs", "/v1/outcomes"]
FORMS = ["application/x-protobuf", "application/json", "text/plain", "x"]
EXAMPLES = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20).map(bytes.hex)
NAMES = """
resourceSpans scopeSpans spans resourceLogs scopeLogs logRecords resource scope attributes key value links status code kind
traceId spanId parentSpanId name eventName timeUnixNano stringValue intValue doubleValue arrayValue kvlistValue values
bytesValue outcomes target trace_id span_id response_id join_key conversation_id turn ns id source edit final_text op
metadata event_id occurred_at comment policy_version flags
"""
names = st.sampled_from(NAMES.split())
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6), max_leaves=25
)


def nested(leaf: st.SearchStrategy[Any], *path: str) -> st.SearchStrategy[Any]:
    """`leaf` where a valid request has it, so that the inner checks are reached."""
    for name in reversed(path):
        leaf = st.lists(leaf, max_size=3).map(lambda items, name=name: {name: items})  # type: ignore[misc]
    return leaf


def sent(collector: Any, path: str, body: bytes, form: str, encoding: str = "identity") -> None:
    answer = collector.post(path, body, form=form, content_encoding=encoding)
    assert answer.status_code in (200, 202, 400, 413, 415), answer.text


@EXAMPLES
@given(path=st.sampled_from(ROUTES), body=st.binary(max_size=300), form=st.sampled_from(FORMS), zipped=st.sampled_from([0, 1, 2]))
def test_any_bytes(collector: Any, path: str, body: bytes, form: str, zipped: int) -> None:
    """Random bytes, plain, compressed, or claimed to be compressed."""
    sent(collector, path, gzip.compress(body) if zipped == 2 else body, form, "gzip" if zipped else "identity")


@EXAMPLES
@given(
    path=st.sampled_from(ROUTES),
    data=trees
    | nested(st.dictionaries(names, trees, max_size=8), "resourceSpans", "scopeSpans", "spans")
    | nested(st.dictionaries(names, trees, max_size=8), "resourceLogs", "scopeLogs", "logRecords")
    | st.dictionaries(names, trees, max_size=8),
)
def test_any_json_of_our_words(collector: Any, path: str, data: Any) -> None:
    """JSON in which our field names stand where they do not belong, with NaN, huge numbers and lone surrogates."""
    sent(collector, path, json.dumps(data).encode(), "application/json")


@EXAMPLES
@given(data=st.data())
def test_valid_protobuf_with_any_content(collector: Any, data: st.DataObject) -> None:
    """Well-formed requests whose ids and attributes are anything at all, evaluation events among them."""
    some = data.draw
    ids = st.sampled_from([0, 8, 16]).flatmap(lambda size: st.binary(min_size=size, max_size=size)) | st.binary(max_size=20)
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
    keys = text | st.sampled_from(
        ["gen_ai.evaluation.name", "nightschool.outcome.target", "nightschool.outcome.op", "nightschool.outcome.metadata"]
    )
    traces, logs = ExportTraceServiceRequest(), ExportLogsServiceRequest()
    for _ in range(some(st.integers(0, 3))):
        span = traces.resource_spans.add().scope_spans.add().spans.add(trace_id=some(ids), span_id=some(ids), name=some(text))
        log = logs.resource_logs.add().scope_logs.add().log_records.add(trace_id=some(ids), span_id=some(ids))
        log.event_name = some(st.sampled_from(["", "gen_ai.evaluation.result"]))
        log.time_unix_nano = some(st.integers(0, 2**64 - 1))
        for target in (span, log):
            for key, value in some(st.dictionaries(keys, text | st.integers(-(2**63), 2**63 - 1), max_size=4)).items():
                attribute = target.attributes.add(key=key).value
                if isinstance(value, str):
                    attribute.string_value = value
                else:
                    attribute.int_value = value
    sent(collector, "/v1/traces", traces.SerializeToString(), "application/x-protobuf")
    sent(collector, "/v1/logs", logs.SerializeToString(), "application/x-protobuf")


@pytest.mark.parametrize("value", ["1" * 5000, '"\\ud800"', "1e999", "-0", '"' + "9" * 5000 + '"'])
@pytest.mark.parametrize("field", ["traceId", "name", "kind", "startTimeUnixNano", "flags"])
def test_awkward_json_values(collector: Any, field: str, value: str) -> None:
    """Numbers too long to print, lone surrogates and infinities are bad requests, not crashes."""
    span = f'{{"spanId": "1111111111111111", "{field}": {value}}}'
    sent(collector, "/v1/traces", f'{{"resourceSpans": [{{"scopeSpans": [{{"spans": [{span}]}}]}}]}}'.encode(), FORMS[1])
    sent(
        collector,
        "/v1/outcomes",
        f'{{"name": {value}, "value": {value}, "target": {{"response_id": {value}}}}}'.encode(),
        FORMS[1],
    )


def test_a_small_run_of_the_fuzzer_finds_nothing() -> None:
    """As `make bench NAME=fuzz`, but short: well-formed requests and many broken forms of each, by HTTP and gRPC."""
    found = fuzz.fuzz(1500, seed=11)
    assert (found.server_errors, found.crashes) == ([], [])
    assert found.inputs >= 1500
    assert found.by_grpc > 0
    assert {"200", "202", "400", "401", "413", "415", "OK", "INVALID_ARGUMENT"} <= set(found.statuses)


def test_the_fuzzer_finds_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream behind the collector notices records that are keyed by another trace than their own."""
    monkeypatch.setattr(spans, "_ids", lambda request, start, end: (b"\1" * 16, b"\1" * 8))
    assert fuzz.fuzz(1500, seed=11).crashes
