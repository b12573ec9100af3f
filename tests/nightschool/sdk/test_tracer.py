"""Requests are traces of their own, marked with task, user and conversation, beside the app's own traces."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased

import nightschool
from nightschool.errors import ConfigError, RecordError
from nightschool.keys import hash_key, new_key, subject_of
from nightschool.sdk.client import Client
from nightschool.testing import CapturedSpan, Collector, capture


@pytest.fixture
def collector() -> Iterator[Collector]:
    with capture() as running:
        yield running


def ask(model: str = "m") -> None:
    with nightschool.model_call(model, [{"role": "user", "content": "hi"}]) as call:
        call.answer("hello", response_id=f"id-{model}")


def spans(collector: Collector) -> dict[str, CapturedSpan]:
    """The spans by name."""
    assert nightschool.flush()
    return {span.name: span for span in collector.spans}


def test_marks_are_on_the_request_and_on_every_span_below(collector: Collector) -> None:
    """Task, pseudonym, conversation and side are on the request's span and its calls; the tenant is on the resource."""
    with nightschool.request(task="triage", user="mia", conversation="c1") as req:
        ask()
    seen = spans(collector)
    root, call = seen["invoke_workflow triage"], seen["chat m"]
    marks = {
        "nightschool.side": "app",
        "nightschool.task": "triage",
        "nightschool.subject": subject_of(hash_key("ns-test-key"), "mia"),
        "gen_ai.conversation.id": "c1",
    }
    for span in (root, call):
        assert marks.items() <= span.attributes.items()
        assert span.resource["nightschool.tenant.id"] == "test"
        assert span.trace_id == req.trace_id
    assert (root.parent_span_id, call.parent_span_id) == ("", root.span_id)
    assert req.response_id == "id-m"


def test_the_users_name_never_leaves() -> None:
    """Users and raters are sent as pseudonyms keyed by the subject key, equal for the same person."""
    with capture(subject_key="secret") as collector:
        with nightschool.request(task="triage", user=4711):
            ask()
            nightschool.outcome("thumb", True, rater=4711)
        root = spans(collector)["invoke_workflow triage"]
        assert root.attributes["nightschool.subject"] == subject_of("secret", "4711")
        assert collector.outcomes[0]["source"] == {"kind": "human", "id": subject_of("secret", "4711")}
        assert not any(b"4711" in request.body for request in collector.requests)


def test_a_request_in_a_request_is_a_span_of_the_same_trace(collector: Collector) -> None:
    """A nested request keeps the outer marks it does not set itself."""
    with nightschool.request(task="triage", user="mia") as outer, nightschool.request(task="reply") as inner:
        ask()
    assert inner.trace_id == outer.trace_id
    attributes = spans(collector)["chat m"].attributes
    assert attributes["nightschool.task"] == "reply"
    assert attributes["nightschool.subject"] == subject_of(hash_key("ns-test-key"), "mia")


def test_two_requests_in_a_row_are_two_traces(collector: Collector) -> None:
    """The current request ends with its block."""
    with nightschool.request(task="one") as first:
        pass
    assert nightschool.current_request() is None
    with nightschool.request(task="two") as second:
        pass
    assert first.trace_id != second.trace_id


def test_a_call_outside_any_request_is_recorded_without_a_task(collector: Collector) -> None:
    """An unmarked model call is a trace of its own and invents no task."""
    ask()
    span = spans(collector)["chat m"]
    assert span.parent_span_id == ""
    assert "nightschool.task" not in span.attributes


def test_a_user_may_be_known_late(collector: Collector) -> None:
    """`identify` marks the request and what follows."""
    with nightschool.request(task="triage") as req:
        req.identify(user="mia", conversation="c1")
        ask()
    seen = spans(collector)
    assert {seen[name].attributes["gen_ai.conversation.id"] for name in seen} == {"c1"}
    assert {seen[name].attributes["nightschool.subject"] for name in seen} == {subject_of(hash_key("ns-test-key"), "mia")}


def test_an_exception_is_recorded_and_goes_on_to_the_app(collector: Collector) -> None:
    """An exception in a request or a call marks its span and is raised unchanged."""
    with (
        pytest.raises(KeyError, match="lost"),
        nightschool.request(task="triage"),
        nightschool.model_call("m", []),
    ):
        raise KeyError("lost")
    seen = spans(collector)
    assert {(span.status, span.attributes["error.type"]) for span in seen.values()} == {("ERROR", "KeyError")}


def test_every_kind_of_function_can_be_decorated(collector: Collector) -> None:
    """Each call of a decorated function, coroutine, generator or async generator is one request."""

    @nightschool.request(task="plain")
    def plain(text: str) -> str:
        ask("plain")
        return text

    @nightschool.request(task="coroutine")
    async def coroutine() -> int:
        await asyncio.sleep(0)
        ask("coroutine")
        return 1

    @nightschool.request(task="generator")
    def generator() -> Iterator[int]:
        yield 1
        ask("generator")
        yield 2

    @nightschool.request(task="stream")
    async def stream() -> AsyncIterator[int]:
        yield 1
        ask("stream")
        yield 2

    async def consume() -> list[int]:
        return [await coroutine(), *[item async for item in stream()]]

    assert plain("a") + plain("b") == "ab"
    assert list(generator()) == [1, 2]
    assert asyncio.run(consume()) == [1, 1, 2]
    nightschool.flush()
    tasks = sorted(span.attributes["nightschool.task"] for span in collector.spans if span.name.startswith("chat"))
    assert tasks == ["coroutine", "generator", "plain", "plain", "stream"]
    assert len({span.trace_id for span in collector.spans}) == 5


def test_a_generator_left_halfway_ends_its_request(collector: Collector) -> None:
    """A consumer that stops, even in another thread, ends the request without an error anywhere."""

    @nightschool.request(task="stream")
    def generator() -> Iterator[int]:
        yield 1
        yield 2

    items = generator()
    next(items)
    assert nightschool.current_request() is None, "between its steps a generator's request is not its consumer's"
    thread = threading.Thread(target=lambda: contextvars.Context().run(items.close))
    thread.start()
    thread.join()
    assert spans(collector)["invoke_workflow stream"].status == "UNSET"


async def test_concurrent_tasks_do_not_mix(collector: Collector) -> None:
    """Two requests that interleave in one event loop each keep their own calls, also in tasks they start."""

    async def serve(name: str) -> None:
        with nightschool.request(task=name):
            await asyncio.sleep(0)
            await asyncio.gather(asyncio.create_task(call(name)), asyncio.to_thread(ask, f"thread-{name}"))

    async def call(name: str) -> None:
        await asyncio.sleep(0)
        ask(name)

    await asyncio.gather(*(serve(f"t{number}") for number in range(10)))
    await asyncio.to_thread(nightschool.flush)
    calls = [span for span in collector.spans if span.name.startswith("chat")]
    assert len(calls) == 20
    for span in calls:
        assert span.attributes["gen_ai.request.model"].removeprefix("thread-") == span.attributes["nightschool.task"]
    assert len({span.trace_id for span in collector.spans}) == 10


def test_a_thread_may_work_on_a_request(collector: Collector) -> None:
    """A thread started without the context joins with `attached`, one with a copied context needs nothing."""
    with nightschool.request(task="triage") as req:

        def work() -> None:
            with req.attached():
                ask("attached")

        copied = contextvars.copy_context()
        threads = [
            threading.Thread(target=work),
            threading.Thread(target=lambda: copied.run(ask, "copied")),
            threading.Thread(target=lambda: contextvars.Context().run(ask, "alone")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seen = spans(collector)
    assert seen["chat attached"].trace_id == seen["chat copied"].trace_id == req.trace_id
    assert seen["chat alone"].trace_id != req.trace_id


# --- beside the app's own OpenTelemetry -------------------------------------------------------------------------------
@pytest.mark.parametrize("is_sampled", [False, True])
def test_the_apps_tracing_neither_suffers_nor_decides(collector: Collector, is_sampled: bool) -> None:
    """Ours is recorded whatever the app samples, with a link to the app's span; the app's spans do not change."""
    exported = InMemorySpanExporter()
    app = TracerProvider(sampler=ParentBased(ALWAYS_ON if is_sampled else ALWAYS_OFF))
    app.add_span_processor(SimpleSpanProcessor(exported))
    tracer = app.get_tracer("app")
    with (
        tracer.start_as_current_span("handler") as handler,
        nightschool.request(task="triage") as req,
        tracer.start_as_current_span("database"),
    ):
        ask()
    app_trace = trace.format_trace_id(handler.get_span_context().trace_id)
    seen = spans(collector)
    assert set(seen) == {"invoke_workflow triage", "chat m"}
    assert seen["invoke_workflow triage"].links == (app_trace,)
    assert req.trace_id != app_trace
    parents = {span.name: span.parent for span in exported.get_finished_spans()}
    assert parents == ({"handler": None, "database": handler.get_span_context()} if is_sampled else {})
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider), "the global provider must stay as it was"


def test_a_call_outside_a_request_is_not_below_the_apps_span(collector: Collector) -> None:
    """Inside a span of the app an unmarked call is still a trace of its own."""
    with TracerProvider().get_tracer("app").start_as_current_span("handler"):
        ask()
    assert spans(collector)["chat m"].parent_span_id == ""


def test_the_apps_variables_do_not_cut_or_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampler and limit variables meant for the app's tracing neither drop our spans nor cut our content."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    for name in (
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    ):
        monkeypatch.setenv(name, "3")
    text = "long " * 100_000
    with capture() as collector:
        with nightschool.model_call("m", [{"role": "user", "content": text}], temperature=0.5, seed=1):
            pass
        attributes = spans(collector)["chat m"].attributes
    assert text in attributes["gen_ai.input.messages"]
    assert attributes["gen_ai.request.seed"] == 1


# --- outcomes ---------------------------------------------------------------------------------------------------------
def test_an_outcome_inside_a_request_is_about_it(collector: Collector) -> None:
    """Without a target an outcome belongs to the current request."""
    with nightschool.request(task="triage") as req:
        nightschool.outcome("queue", "cards")
    assert nightschool.flush()
    assert [(one["target"], one["value"]) for one in collector.outcomes] == [({"trace_id": req.trace_id}, "cards")]


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ({"response_id": "chatcmpl-1"}, {"response_id": "chatcmpl-1"}),
        ({"trace_id": "ab" * 16}, {"trace_id": "ab" * 16}),
        ({"conversation_id": "c1"}, {"conversation_id": "c1"}),
        ({"episode_id": "e1"}, {"episode_id": "e1"}),
        ({"join_key": ("ticket", "T-42")}, {"join_key": {"ns": "ticket", "id": "T-42"}}),
        ({"join_key": {"ns": "ticket", "id": "T-42"}}, {"join_key": {"ns": "ticket", "id": "T-42"}}),
    ],
)
def test_every_kind_of_target(collector: Collector, given: dict[str, Any], target: dict[str, Any]) -> None:
    """An outcome may name its target in each of the five ways."""
    assert nightschool.outcome("thumb", False, **given)
    nightschool.flush()
    assert collector.outcomes[0]["target"] == target


def test_an_outcome_says_all_it_was_given(collector: Collector) -> None:
    """Final text, source, comment, metadata, time and event id arrive as given."""
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    event_id = nightschool.outcome(
        "edit",
        final_text="Dear Mia, …",
        response_id="r",
        source="code",
        comment="rewritten",
        metadata={"queue": "cards"},
        occurred_at=moment,
        event_id="webhook-7",
    )
    nightschool.flush()
    assert event_id == "webhook-7"
    assert collector.outcomes == [
        {
            "target": {"response_id": "r"},
            "name": "edit",
            "op": "set",
            "edit": {"final_text": "Dear Mia, …"},
            "source": {"kind": "code", "id": ""},
            "occurred_at": int(moment.timestamp()) * 10**9,
            "comment": "rewritten",
            "metadata": {"queue": "cards"},
            "event_id": "webhook-7",
        }
    ]


def test_each_outcome_has_an_id_of_its_own(collector: Collector) -> None:
    """Two equal outcomes are two events, but a retry is not a new one: the id is made in the call."""
    ids = {nightschool.outcome("thumb", True, response_id="r") for _ in range(2)}
    nightschool.outcome("thumb", op="retract", response_id="r")
    nightschool.flush()
    assert ids == {outcome["event_id"] for outcome in collector.outcomes[:2]}
    assert len(ids) == 2
    assert collector.outcomes[2]["op"] == "retract"
    assert "value" not in collector.outcomes[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "thumb", "response_id": "r"},
        {"name": "thumb", "value": 1, "final_text": "x", "response_id": "r"},
        {"name": "", "value": 1, "response_id": "r"},
        {"name": "thumb", "value": float("nan"), "response_id": "r"},
        {"name": "thumb", "value": 1},
        {"name": "thumb", "value": 1, "response_id": "r", "conversation_id": "c"},
        {"name": "thumb", "value": 1, "response_id": "r", "source": "robot"},
        {"name": "thumb", "value": 1, "response_id": "r", "metadata": {"a": {1, 2}}},
        {"name": "thumb", "value": 1, "trace_id": "short"},
    ],
)
def test_an_outcome_that_makes_no_sense_is_counted_not_raised(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    """A wrong outcome is logged once and counted as invalid; only NIGHTSCHOOL_STRICT=1 raises it."""
    with caplog.at_level(logging.WARNING, logger="nightschool"):
        assert nightschool.outcome(**wrong) is None
        assert nightschool.outcome(**wrong) is None
    assert nightschool.stats().outcomes.invalid == 2
    assert len(caplog.records) == 1
    monkeypatch.setenv("NIGHTSCHOOL_STRICT", "1")
    with pytest.raises((RecordError, TypeError)):
        nightschool.outcome(**wrong)


# --- configuration ----------------------------------------------------------------------------------------------------
def test_configuring_again_replaces_and_sends_what_the_first_held() -> None:
    """The first client's records go to the first collector, later ones to the second."""
    with Collector() as first, Collector() as second:
        nightschool.configure(first.endpoint, "one", api_key="key", service_name="desk")
        ask("early")
        nightschool.configure(second.endpoint, "two", api_key="key")
        ask("late")
        assert nightschool.flush()
        assert [(span.name, span.resource["nightschool.tenant.id"]) for span in first.spans] == [("chat early", "one")]
        assert [(span.name, span.resource["nightschool.tenant.id"]) for span in second.spans] == [("chat late", "two")]
        assert first.spans[0].resource["service.name"] == "desk"
        assert nightschool.shutdown()


def test_one_process_may_work_for_several_tenants(collector: Collector) -> None:
    """Inside a request of another client the module's functions record for that client's tenant."""
    with Collector() as other:
        client = Client(other.endpoint, "other", api_key="key")
        with client.request(task="triage"):
            ask("theirs")
            nightschool.outcome("thumb", True)
        ask("ours")
        assert client.shutdown()
        assert sorted(span.name for span in other.spans) == ["chat theirs", "invoke_workflow triage"]
        assert len(other.outcomes) == 1
    assert set(spans(collector)) == {"chat ours"}
    assert not collector.outcomes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tenant": "Not A Tenant"}, "tenant 'Not A Tenant'"),
        ({"endpoint": "localhost"}, "endpoint is 'localhost'"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "line\nbreak"}, "api_key"),
        ({"api_key": None}, "api_key"),
        ({"max_queue_bytes": 0}, "max_queue_bytes is 0"),
    ],
)
def test_a_wrong_setting_is_an_error_at_the_start(wrong: dict[str, Any], message: str) -> None:
    """`configure` names what is wrong; the client configured before stays."""
    right = {"endpoint": "http://127.0.0.1:1", "tenant": "acme", "api_key": "key"}
    with capture() as collector:
        with pytest.raises(ConfigError, match=message):
            nightschool.configure(**{**right, **wrong})
        ask()
        assert set(spans(collector)) == {"chat m"}


def test_a_client_does_not_show_its_key() -> None:
    """The key is in no representation that may end up in a log."""
    client = Client("http://127.0.0.1:1", "acme", api_key="ns-acme-secret")
    assert "secret" not in repr(client)
    client.shutdown(0)


@pytest.mark.parametrize("tenant", ["acme", "acme-eu"])
def test_a_key_of_another_tenant_is_said_at_once(tenant: str, caplog: pytest.LogCaptureFixture) -> None:
    """A key names its tenant, so `configure` warns where it is not the one given; a key of another form says nothing."""
    for key in (new_key("acme-eu"), "k", "ns-acme-secret"):
        Client("http://127.0.0.1:1", tenant, api_key=key).shutdown(0)
    said = [record.getMessage() for record in caplog.records if record.name == "nightschool"]
    if tenant == "acme-eu":
        assert said == []
    else:
        (warning,) = said
        assert "api_key is a key of tenant 'acme-eu', but tenant is 'acme'" in warning


def test_disabled_means_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NIGHTSCHOOL_DISABLED=1 the same code runs, nothing is checked, started, patched or sent."""
    import openai

    monkeypatch.setenv("NIGHTSCHOOL_DISABLED", "1")
    before, threads = openai.OpenAI.request, threading.active_count()
    nightschool.configure("not even a URL", "?", api_key="")
    nightschool.instrument_openai()
    with nightschool.request(task="triage", user="mia") as req:
        ask()
        with nightschool.model_call("m", []) as call:
            assert call.headers == {}
        req.identify(user="x")
        assert nightschool.outcome("thumb") is None
    assert req.trace_id is None
    assert nightschool.flush() and nightschool.shutdown()
    assert nightschool.stats() == nightschool.Stats()
    assert openai.OpenAI.request is before
    assert threading.active_count() == threads


# --- our errors stay ours ---------------------------------------------------------------------------------------------
class Hostile:
    """An object that fails whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("hostile")


def test_internal_errors_are_counted_and_kept_from_the_app(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    """In production an error of ours is swallowed, logged and counted, and the app's own work goes on."""
    monkeypatch.setenv("NIGHTSCHOOL_STRICT", "0")
    with nightschool.request(task="triage"), nightschool.model_call("m", [Hostile()]) as call:  # type: ignore[list-item]
        call.respond(Hostile())
        done = True
    assert done
    assert nightschool.stats().internal_errors >= 1
    assert set(spans(collector)) == {"invoke_workflow triage"}


def test_internal_errors_are_raised_under_pytest(collector: Collector) -> None:
    """Under pytest an error of ours is raised."""
    with pytest.raises(RuntimeError, match="hostile"):
        nightschool.model_call("m", [Hostile()])  # type: ignore[list-item]
