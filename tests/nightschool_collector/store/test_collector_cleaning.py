"""Redaction span by span gives what redaction of the whole request gives, and touches nothing else."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool.redaction.otlp import redact_traces
from nightschool.redaction.redactor import Redactor
from nightschool.redaction.rules import Rules
from nightschool_collector.store.cleaning import CleanFrames, Cleaning
from nightschool_collector.store.signals import TRACES
from nightschool_collector.store.spans import split_spans

TEXTS = [
    "nothing to see",
    "write to anna@example.com",
    "http://user:secret@host/ and call 0049 170 1234567",
    "10.0.0.1",
    "://x",  # the beginning of a finding that might end in the next span
    "y@",
    "\\u0061nna@example.com",
    '{"user_id": "anna", "content": "x"}',
    "trace 0af7651916cd43dd8448eb211c80319c",
]
RULES = [Rules(), Rules(kinds=()), Rules(kinds=("email",), deny=("project x",))]


@pytest.mark.parametrize("rules", RULES, ids=["default", "off", "own"])
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6), resource=st.sampled_from(TEXTS))
def test_it_is_what_redacting_the_whole_gives(rules: Rules, texts: list[str], resource: str) -> None:
    """Whatever the texts and their order: the stored spans are those of the request redacted as one."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.add(key="user.id").value.string_value = resource
    scope = group.scope_spans.add()
    for number, text in enumerate(texts, start=1):
        span = scope.spans.add(trace_id=number.to_bytes(16, "big"), span_id=b"\1" * 8, name="chat m")
        span.attributes.add(key="gen_ai.input.messages").value.string_value = text
        span.attributes.add(key="enduser.id" if number % 2 else "metadata").value.string_value = text
    raw = request.SerializeToString()
    apart = split_spans(raw, Cleaning(Redactor(rules, "secret"), TRACES, raw)).records()
    whole = split_spans(redact_traces(Redactor(rules, "secret"), raw, subjects=True)).records()
    assert list(apart) == list(whole)


def test_clean_resources_are_remembered_by_little(requests: Any) -> None:
    """A thousand resources of any size leave a few bytes each, and a known one is not searched again."""
    known, redactor = CleanFrames(), Redactor(Rules(), "secret")
    tracemalloc.start()
    try:
        for number in range(40):
            raw = requests.spans(1, resource=f"{number} " + "x" * (256 << 10)).SerializeToString()
            list(split_spans(raw, Cleaning(redactor, TRACES, raw, known=known)).records())
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 << 20
    for number in range(2000):
        known.add(number.to_bytes(16, "big"))
    assert (1999).to_bytes(16, "big") in known
    assert (0).to_bytes(16, "big") not in known


def test_clean_spans_are_not_even_decoded(requests: Any) -> None:
    """Only a suspicious span is decoded; the others are stored as the bytes they were."""
    request = requests.spans(1, 2, 3)
    request.resource_spans[0].scope_spans[0].spans[1].attributes.add(key="input").value.string_value = "anna@example.com"
    read = []

    def watched(redactor: Redactor, raw: bytes, *, subjects: bool = False) -> bytes:
        read.append(raw)
        return redact_traces(redactor, raw, subjects=subjects)

    raw, watched_traces = request.SerializeToString(), replace(TRACES, redact=watched)
    records = dict(split_spans(raw, Cleaning(Redactor(Rules(), "secret"), watched_traces, raw)).records())
    assert len(read) == 1
    assert b"anna@example.com" not in records[b"%032x" % 2]
    untouched = dict(split_spans(raw).records())
    assert records[b"%032x" % 1] == untouched[b"%032x" % 1]
