"""Tools that an app runs are spans of the request, with their arguments and results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

import nightschool
from nightschool.testing import CapturedSpan, Collector, capture


@pytest.fixture
def collector() -> Iterator[Collector]:
    with capture() as running:
        yield running


def tool_span(collector: Collector) -> CapturedSpan:
    assert nightschool.flush()
    assert nightschool.stats().internal_errors == 0
    return next(span for span in collector.spans if span.name == "execute_tool weather")


def test_a_tools_run_is_a_span_below_its_request(collector: Collector) -> None:
    """Name, id, arguments and result are on it, with the marks of the request."""
    with nightschool.request(task="triage") as request:
        arguments = {"city": "Rīga"}
        with nightschool.tool_call("weather", arguments, call_id="c1") as tool:
            arguments["city"] = "changed"
            tool.result({"degrees": 4, "at": datetime(2026, 1, 1, tzinfo=UTC)})
    span = tool_span(collector)
    said = span.attributes
    assert (span.kind, span.trace_id, said["nightschool.task"]) == ("INTERNAL", request.trace_id, "triage")
    assert (said["gen_ai.operation.name"], said["gen_ai.tool.name"], said["gen_ai.tool.call.id"]) == (
        "execute_tool",
        "weather",
        "c1",
    )
    assert json.loads(said["gen_ai.tool.call.arguments"]) == {"city": "Rīga"}
    assert json.loads(said["gen_ai.tool.call.result"]) == {"degrees": 4, "at": "2026-01-01 00:00:00+00:00"}


def test_a_tool_that_fails_says_so_and_fails(collector: Collector) -> None:
    """The error is on the span and goes on to the app; there is no result."""
    with pytest.raises(KeyError), nightschool.tool_call("weather"):
        raise KeyError("no such city")
    span = tool_span(collector)
    assert (span.status, span.attributes["error.type"]) == ("ERROR", "KeyError")
    assert not {"gen_ai.tool.call.result", "gen_ai.tool.call.arguments"} & span.attributes.keys()


def test_without_content_a_tool_keeps_its_name(collector: Collector) -> None:
    """Arguments and results are content."""
    with (
        nightschool.request(task="triage", capture_content=False),
        nightschool.tool_call("weather", {"city": "secret"}) as tool,
    ):
        tool.result("secret")
    assert tool_span(collector).attributes["gen_ai.tool.name"] == "weather"
    assert not any(b"secret" in request.body for request in collector.requests)


def test_long_results_count_against_the_queue() -> None:
    """The limit of the queue applies to tools as to model calls."""
    with capture(max_queue_bytes=50_000) as collector:
        collector.stop()
        for _ in range(10):
            with nightschool.tool_call("weather") as tool:
                tool.result("x" * 20_000)
        spans = nightschool.stats().spans
        assert (spans.queued, spans.dropped) == (2, 8)
        nightschool.shutdown(0)
