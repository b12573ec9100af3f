"""What `import nightschool` gives, and what it costs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import nightschool

PUBLIC = {
    "Client": (
        "(endpoint, tenant, api_key, subject_key, service_name, max_queue_bytes, capture_content, outcome_key, redaction, enabled, clock,"
        " id_generator)"
    ),
    "LaneStats": "(queued, sent, dropped, rejected, invalid)",
    "ModelCall": "(client, request, span, captures_content)",
    "Request": "(client_of, task, user, conversation, episode, capture_content)",
    "ToolCall": "(client, span, captures_content)",
    "tool_call": "(name, arguments, call_id)",
    "Stats": "(spans, outcomes, retries, internal_errors)",
    "configure": "(endpoint, tenant, api_key, subject_key, service_name, max_queue_bytes, capture_content, outcome_key, redaction)",
    "current_request": "()",
    "flush": "(timeout)",
    "instrument_openai": "()",
    "model_call": "(model, messages, provider, tools, params)",
    "outcome": (
        "(name, value, final_text, final_messages, original_text, demonstration, response_id, trace_id, span_id,"
        " conversation_id, turn, episode_id, join_key, rater, source, comment, metadata, op, occurred_at, event_id)"
    ),
    "outcome_token": "(names, user, trace_id, span_id, conversation, expires_in_s)",
    "request": "(task, user, conversation, episode, capture_content)",
    "shutdown": "(timeout)",
    "stats": "()",
    "tag_join": "(ns, id)",
}


def test_public_names_are_pinned() -> None:
    """The public names and their parameters grow only on purpose."""
    found = {name: f"({', '.join(inspect.signature(getattr(nightschool, name)).parameters)})" for name in nightschool.__all__}
    assert found == PUBLIC


@pytest.mark.parametrize("name", ["outcome", "outcome_token"])
def test_a_function_has_the_parameters_of_the_clients_method(name: str) -> None:
    """They are written once: names, defaults and annotations are the same in the function, the method and a bound method."""
    function, method = getattr(nightschool, name), getattr(nightschool.Client, name)
    bound = getattr(nightschool.Client("", "", api_key="", enabled=False), name)
    _, *parameters = inspect.signature(method).parameters.values()
    assert list(inspect.signature(function).parameters.values()) == parameters
    assert list(inspect.signature(bound).parameters.values()) == parameters


def test_an_unknown_name_says_what_there_is() -> None:
    """A misspelled name is an AttributeError that lists the right ones."""
    try:
        nightschool.requets  # noqa: B018
    except AttributeError as error:
        assert "request" in str(error)
    else:
        raise AssertionError("no error")


_USE = """
import json, sys, nightschool
names = set(sys.modules)
nightschool.request
with nightschool.request(task="t", user="u") as req, nightschool.model_call("m", []) as call:
    call.answer("x")
print(json.dumps({"imported": sorted(names), "used": sorted(sys.modules), "trace_id": req.trace_id}))
"""


def test_the_import_is_light_and_the_sdk_needs_opentelemetry_only() -> None:
    """`import nightschool` loads no OpenTelemetry yet, and using it loads nothing heavy, nor the openai client."""
    done = subprocess.run([sys.executable, "-c", _USE], capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(done.stdout)
    assert not any(name.startswith("opentelemetry") for name in seen["imported"])
    heavy = {"torch", "vllm", "fastapi", "transformers", "peft", "kafka", "openai", "requests", "grpc", "asyncio"}
    assert not heavy & set(seen["used"])


def test_before_configure_nothing_is_recorded_and_that_is_said_once() -> None:
    """An app that forgot `configure` works, and its log says so in one line."""
    done = subprocess.run([sys.executable, "-c", _USE], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["trace_id"] is None
    assert done.stderr.splitlines() == ["nightschool.configure(...) was not called: nothing is recorded"]
