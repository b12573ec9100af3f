"""Where an app keeps content out, spans stay and texts go, on both sides of the call."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import nightschool
from nightschool.errors import ConfigError
from nightschool.testing import CapturedSpan, Collector, capture
from nightschool_serving.telemetry.spans import TraceParent

SECRET = "my card 4929 is lost"
TOOLS = [{"type": "function", "function": {"name": "block_card"}}]


def ask() -> dict[str, str]:
    """One model call with content in every place; returns the headers the server gets."""
    with nightschool.model_call("m", [{"role": "user", "content": SECRET}], tools=TOOLS, temperature=0.5) as call:
        call.answer(f"so, {SECRET}?", response_id="r1", model="served", input_tokens=5, output_tokens=7)
        return call.headers


def call_span(collector: Collector) -> CapturedSpan:
    assert nightschool.flush()
    assert nightschool.stats().internal_errors == 0
    return next(span for span in collector.spans if span.name == "chat m")


def is_captured(span: CapturedSpan) -> bool:
    """Whether texts are on the span; what is not a text must be there either way."""
    assert (span.attributes["gen_ai.response.id"], span.attributes["gen_ai.usage.output_tokens"]) == ("r1", 7)
    assert (span.attributes["gen_ai.request.temperature"], span.attributes["gen_ai.request.model"]) == (0.5, "m")
    assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    contents = {"gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.definitions"} & span.attributes.keys()
    assert len(contents) in (0, 3)
    assert span.attributes.get("nightschool.content.capture", True) is bool(contents)
    return bool(contents)


@pytest.mark.parametrize(
    ("configured", "task", "given", "captured"),
    [
        (True, "triage", None, True),
        (False, "triage", None, False),
        ({"triage": False}, "triage", None, False),
        ({"triage": False}, "reply", None, True),
        ({"triage": True}, "reply", None, True),
        (True, "triage", False, False),
        ({"triage": False}, "triage", True, True),
    ],
)
def test_content_is_recorded_as_configured_by_task(configured: Any, task: str, given: bool | None, captured: bool) -> None:
    """What a request is told itself replaces what is said of its task; a task that is not named is recorded."""
    with capture(capture_content=configured) as collector:
        with nightschool.request(task=task, user="mia", capture_content=given):
            ask()
        assert is_captured(call_span(collector)) is captured
        if not captured:
            assert not any(SECRET.encode() in request.body for request in collector.requests)
            # The request's own span says so too.
            assert collector.spans[-1].attributes["nightschool.content.capture"] is False


def test_a_request_inside_one_without_content_has_none() -> None:
    """Inside a request that keeps content out it stays out, unless an inner request asks for it itself."""
    with capture() as collector:
        with nightschool.request(task="outer", capture_content=False), nightschool.request(task="inner"):
            ask()
        assert not is_captured(call_span(collector))
    with capture() as collector:
        with nightschool.request(task="o", capture_content=False), nightschool.request(task="i", capture_content=True):
            ask()
        assert is_captured(call_span(collector))


def test_a_decorated_function_keeps_content_out_of_every_call() -> None:
    """The decorator carries the setting."""
    with capture() as collector:
        nightschool.request(task="triage", capture_content=False)(ask)()
        assert not is_captured(call_span(collector))


def test_a_call_outside_any_request_follows_the_configuration() -> None:
    """A call without a task follows only the setting for all tasks."""
    with capture(capture_content=False) as collector:
        ask()
        assert not is_captured(call_span(collector))
    with capture(capture_content={"triage": False}) as collector:
        ask()
        assert is_captured(call_span(collector))


def test_the_server_is_told() -> None:
    """A call's headers make the server's span a child of ours, and keep token ids out of it where we keep texts out."""
    with capture(capture_content={"triage": False}) as collector:
        with nightschool.request(task="triage"):
            silent = ask()
        parent = TraceParent.parse(silent["traceparent"])
        span = call_span(collector)
        assert parent is not None
        assert (parent.trace_id.hex(), parent.span_id.hex()) == (span.trace_id, span.span_id)
        with nightschool.request(task="reply"):
            assert "x-nightschool-capture" not in ask()
    assert silent["x-nightschool-capture"] == "off"


@pytest.mark.parametrize(
    ("said", "captured"), [("NO_CONTENT", False), ("event_only", False), ("SPAN_AND_EVENT", True), ("", True)]
)
def test_opentelemetrys_own_variable_is_honoured_and_never_in_silence(
    said: str, captured: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it keeps content out of spans so do we, with a line in the log; an argument of `configure` wins."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", said)
    with caplog.at_level(logging.WARNING, logger="nightschool"), capture() as collector:
        ask()
        assert is_captured(call_span(collector)) is captured
    assert ("capture_content=True records them" in caplog.text) is not captured
    with capture(capture_content=True) as collector:
        ask()
        assert is_captured(call_span(collector))


@pytest.mark.parametrize("wrong", ["no", {"triage": "no"}, 0])
def test_a_setting_that_means_nothing_is_refused(wrong: Any) -> None:
    """A typo must not switch recording on or off."""
    with pytest.raises(ConfigError, match=r"capture_content is .* it must be True, False, or a mapping"):
        nightschool.configure("http://127.0.0.1:1", "acme", api_key="key", capture_content=wrong)
