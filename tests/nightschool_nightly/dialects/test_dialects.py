"""The same traffic, recorded by each project's own package, gives the same episodes but for one table of gaps.

The recordings are the bytes of real exports: `tests/goldens/record/` makes them anew.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool import semconv as names
from nightschool.episode import Episode, RecordedCall
from nightschool.stream import Record
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly import dialects
from nightschool_nightly.dialects.dialect import Dialect
from nightschool_nightly.dialects.table import DIALECTS
from nightschool_nightly.episodes.counts import ReadCounts
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.freeze.freeze import freeze_whole_stream

GOLDENS = Path(__file__).parents[2] / "goldens"
REFERENCE = "nightschool_tracer"
ALL, STREAMED, WHOLE = {0, 1, 2}, {2}, {0, 1}  # the calls in order: asks for a tool, answers with its result, streams
NOBODY, RAW = (None, None), ("user-7", "thread-42")

# What a package does not capture: field -> in which calls. Everything else must equal what our own tracer captured.
GAPS: dict[str, dict[str, set[int]]] = {
    "otel_current": {},
    "otel_current_events": {},
    "otel_1_36": {"tools": ALL},
    "otel_span_events": {"tools": ALL, "seed": ALL},
    "openllmetry": {"seed": ALL},
    "openllmetry_indexed": {"seed": ALL, "usage": STREAMED},
    "openinference": {},
    "langfuse": {"response_id": ALL, "finish_reason": WHOLE},
    "vercel": {},
    "vercel_otel": {"seed": ALL},
    "mlflow": {},
    "agent_lightning": {},
}
# What a package claims and no server said.
CLAIMS: dict[str, dict[str, int]] = {"vercel_otel": {"cache_read_input_tokens": 0}}
# User and session as the package writes them when the app names them in the package's own way.
PEOPLE = dict.fromkeys(("openllmetry", "openllmetry_indexed", "openinference", "langfuse", "vercel"), RAW)
# Packages that record a tool as it runs, and the id of the tool call where they know it.
TOOL_RUNS = {
    **dict.fromkeys(("otel_current", "vercel", "vercel_otel"), "call_1"),
    **dict.fromkeys(("openllmetry", "openllmetry_indexed", "openinference", "langfuse", "mlflow")),
}

Read = Callable[..., tuple[list[Episode], ReadCounts]]


def recorded(dialect: str) -> list[tuple[str, bytes]]:
    """The bodies of the export requests of a golden, each with its topic."""
    topics = {"traces": names.TOPIC_SPANS, "logs": names.TOPIC_LOGS}
    return [(topics[path.name.split("-")[0]], path.read_bytes()) for path in sorted((GOLDENS / dialect).glob("*.pb"))]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Read]:
    """Builds the episodes of records, in order of start."""
    folders = iter(range(100))

    def run(*records: tuple[str, bytes]) -> tuple[list[Episode], ReadCounts]:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        with SqliteStream(folder / "stream.db", partitions=1) as stream:
            for topic, value in records:
                stream.append(topic, [Record(b"key", value, {names.HEADER_TENANT: b"acme"})])
            manifest = freeze_whole_stream(stream, tenant="acme")
            store = EpisodeStore(folder / "store")
            store.build(stream, manifest)
            built = [item.episode for item in store.episodes("acme")]
            store.close()
        return sorted(built, key=lambda episode: episode.started_ns), store.counts

    yield run


def calls_of(episodes: list[Episode]) -> list[RecordedCall]:
    """Every call of a recording, without the ids that are new each time."""
    return [replace(call, span_id="", release=None) for episode in episodes for call in episode.calls]


def altered(call: RecordedCall, fields: set[str], claims: Mapping[str, int]) -> RecordedCall:
    """`call` as it is known when `fields` were not captured, and `claims` were added to its usage."""
    call = replace(call, usage={**call.usage, **claims})
    blank: dict[str, Any] = {"tools": (), "usage": {}, "response_id": None, "finish_reason": None}
    request = {name: value for name, value in call.request.items() if name not in fields}
    return replace(call, request=request, **{name: blank[name] for name in fields & set(blank)})


def test_every_dialect_is_in_the_table() -> None:
    """A dialect that has a file and no line in the table would never be read."""
    described = {
        value
        for module in pkgutil.iter_modules(dialects.__path__)
        for value in vars(importlib.import_module(f"{dialects.__name__}.{module.name}")).values()
        if isinstance(value, Dialect)
    }
    assert described == set(DIALECTS) and len(DIALECTS) == len(set(DIALECTS))


def test_every_golden_has_its_row() -> None:
    """A recording without a row in the table would not be tested."""
    assert {path.name for path in GOLDENS.iterdir()} - {"record"} == {*GAPS, REFERENCE}


def test_the_reference_is_what_was_sent(read: Read) -> None:
    """Two conversations: a tool call with its result and the final answer, and a streamed answer, all complete."""
    (card, hours), counts = read(*recorded(REFERENCE))
    assert not counts.dropped
    assert [len(card.calls), len(hours.calls)] == [2, 1]
    asked, told = card.calls
    assert [message.role for message in told.messages] == ["system", "user", "assistant", "tool"]
    assert asked.answer.parts == told.messages[2].parts
    assert (asked.finish_reason, told.finish_reason) == ("tool_calls", "stop")
    assert (told.response_id, told.model, told.usage) == (
        "chatcmpl-2",
        "help-desk-1-2026-01",
        {"input_tokens": 80, "output_tokens": 15},
    )
    assert told.request == {"temperature": 0.2, "top_p": 0.9, "max_tokens": 128, "seed": 7}
    assert [tool["function"]["name"] for tool in asked.tools] == ["lookup_card"]
    assert hours.calls[0].answer.text == "Yes, from nine to five."


@pytest.mark.parametrize("dialect", GAPS)
def test_the_same_traffic_gives_the_same_episodes(read: Read, dialect: str) -> None:
    """Messages, parts, tools, model, response id, finish reason, usage, request are equal but for the table of gaps."""
    expected = calls_of(read(*recorded(REFERENCE))[0])
    missing = [{field for field, calls in GAPS[dialect].items() if number in calls} for number in range(len(expected))]
    episodes, counts = read(*recorded(dialect))
    assert [len(episode.calls) for episode in episodes] == [2, 1]
    assert calls_of(episodes) == [
        altered(call, fields, CLAIMS.get(dialect, {})) for call, fields in zip(expected, missing, strict=True)
    ]
    assert not counts.dropped


@pytest.mark.parametrize("dialect", GAPS)
def test_the_user_and_the_session_are_taken_as_they_came(read: Read, dialect: str) -> None:
    """They become subject and conversation of every episode; it is the collector that makes pseudonyms of them."""
    episodes, _ = read(*recorded(dialect))
    assert {(episode.subject, episode.conversation) for episode in episodes} == {PEOPLE.get(dialect, NOBODY)}


def test_a_recording_that_is_sent_again_changes_nothing(read: Read) -> None:
    """Spans, message events and rewards of a retried export are the same spans, events and rewards."""
    for dialect, repeated in {
        "otel_1_36": {"duplicate-span": 5, "duplicate-event": 11},
        "otel_current_events": {"duplicate-span": 5, "duplicate-event": 3},
        "agent_lightning": {"duplicate-span": 7, "duplicate-outcome": 3},
    }.items():
        once, _ = read(*recorded(dialect))
        twice, counts = read(*recorded(dialect), *recorded(dialect))
        assert twice == once
        assert counts.dropped == repeated


def test_message_events_may_come_before_and_apart_from_their_spans(read: Read) -> None:
    """Log records and spans travel apart; only trace and span id join them."""
    records = recorded("otel_1_36")
    assert read(*reversed(records))[0] == read(*records)[0]


def test_message_events_without_their_span_are_counted(read: Read) -> None:
    """Events whose span was sampled away belong to no call: they are counted and make no episode."""
    logs = [record for record in recorded("otel_1_36") if record[0] == names.TOPIC_LOGS]
    episodes, counts = read(*logs)
    assert episodes == []
    assert counts.dropped == {"event-without-call": 11}


def test_rewards_become_outcomes_of_what_they_are_about(read: Read) -> None:
    """Agent Lightning: every dimension is an outcome of the trace; a linked reward is one of the answer it links to."""
    (card, hours), _ = read(*recorded("agent_lightning"))
    said = {history.current.name: history.current for history in card.outcomes}
    assert {name: outcome.value for name, outcome in said.items()} == {"task_completion": 1.0, "politeness": 0.5}
    assert {(outcome.source_kind, outcome.source_id) for outcome in said.values()} == {("code", "agentlightning")}
    (history,) = hours.outcomes
    assert (history.current.name, history.current.value, history.current.target) == (
        "reward",
        0.25,
        {"response_id": "chatcmpl-3"},
    )


@pytest.mark.parametrize("dialect", TOOL_RUNS)
def test_a_tool_that_ran_is_part_of_the_episode(read: Read, dialect: str) -> None:
    """The span of what ran the tool: its name, the call it answers, arguments as an object, the result."""
    (card, hours), _ = read(*recorded(dialect))
    (run,) = card.tool_runs
    assert (run.name, run.id, run.arguments) == ("lookup_card", TOOL_RUNS[dialect], {"last_digits": "4242"})
    assert run.result == '{"status": "blocked", "reason": "three wrong PINs"}'
    assert hours.tool_runs == ()


def test_a_call_that_two_instrumentations_recorded_is_one_call(read: Read) -> None:
    """Of two spans with one response id, one inside the other, the inner one with content counts."""
    ((topic, value),) = recorded("otel_current")
    once, _ = read((topic, value))
    request = ExportTraceServiceRequest.FromString(value)
    content = (names.GEN_AI_INPUT_MESSAGES, names.GEN_AI_OUTPUT_MESSAGES)
    for keeps_content, moved_ns in ((True, -1000), (False, 1000)):
        outer = ExportTraceServiceRequest.FromString(value)
        for scope in outer.resource_spans[0].scope_spans:
            for span in scope.spans:
                span.span_id = bytes(byte ^ 255 for byte in span.span_id)
                span.start_time_unix_nano += moved_ns
                kept = [item for item in span.attributes if keeps_content or item.key not in content]
                del span.attributes[:]
                span.attributes.extend(kept)
        both, counts = read((topic, request.SerializeToString()), (topic, outer.SerializeToString()))
        assert calls_of(both) == calls_of(once)
        assert [call.span_id for episode in both for call in episode.calls] == [
            call.span_id for episode in once for call in episode.calls
        ]
        assert counts.dropped == {"call-recorded-twice": 3}


@pytest.mark.parametrize("kept", ["inner", "outer"])
def test_a_call_inside_a_call_is_the_same_call(read: Read, kept: str) -> None:
    """Of a framework's span around the client's the inner one counts, unless only the outer one has content."""
    ((topic, value),) = recorded("otel_current")
    request = ExportTraceServiceRequest.FromString(value)
    for scope in request.resource_spans[0].scope_spans:
        for number, span in enumerate([span for span in scope.spans if span.name.startswith("chat")], start=1):
            outer = scope.spans.add()
            outer.CopyFrom(span)
            outer.span_id = span.parent_span_id = number.to_bytes(8, "big")
            if kept == "outer":
                left = [item for item in span.attributes if item.key != names.GEN_AI_INPUT_MESSAGES]
                del span.attributes[:]
                span.attributes.extend(left)
    episodes, counts = read((topic, request.SerializeToString()))
    assert calls_of(episodes) == calls_of(read((topic, value))[0])
    made_up = {number.to_bytes(8, "big").hex() for number in (1, 2, 3)}
    assert {call.span_id in made_up for episode in episodes for call in episode.calls} == {kept == "outer"}
    assert counts.dropped == {"call-recorded-twice": 3}


def test_any_span_of_a_trace_may_name_user_session_and_task(read: Read) -> None:
    """What an app sets on its request's span counts for the calls inside it, unless a call says otherwise."""
    ((topic, value),) = recorded("otel_current")
    request = ExportTraceServiceRequest.FromString(value)
    for scope in request.resource_spans[0].scope_spans:
        for span in scope.spans:
            if span.name == "card":
                for name, text in {"user.id": "u1", "session.id": "s1", names.TASK: "cards"}.items():
                    span.attributes.add(key=name).value.string_value = text
            elif span.name.startswith("chat") and span.start_time_unix_nano == max(
                item.start_time_unix_nano for item in scope.spans
            ):
                span.attributes.add(key=names.SUBJECT).value.string_value = "its own"
    card, hours = read((topic, request.SerializeToString()))[0]
    assert (card.subject, card.conversation, card.task) == ("u1", "s1", "cards")
    assert (hours.subject, hours.conversation, hours.task) == ("its own", None, "default")


def test_a_dialect_nobody_reads_is_counted_by_who_made_it(read: Read) -> None:
    """A span that names a model and what was said is never dropped silently; one that does not is no model call."""
    unknown: Mapping[str, str] = {"acme.llm.model": "m", "acme.llm.prompt": "hi", "acme.llm.completion": "ho"}
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.scope.name = "acme-tracing"
    for number, attributes in enumerate((unknown, {"http.route": "/chat", "model": "m"}), start=1):
        span = scope.spans.add(trace_id=bytes([number] * 16), span_id=bytes([number] * 8))
        for name, value in attributes.items():
            span.attributes.add(key=name).value.string_value = value
    episodes, counts = read((names.TOPIC_SPANS, request.SerializeToString()))
    assert episodes == []
    assert counts.dropped == {"unknown-dialect (acme-tracing)": 1}
    scope.scope.name = "<b>[red]acme"
    _, counts = read((names.TOPIC_SPANS, request.SerializeToString()))
    assert counts.dropped == {"unknown-dialect (?b??red?acme)": 1}


def test_names_of_unknown_dialects_do_not_fill_the_report() -> None:
    """Every span of a client that makes up a new name each time is counted, under few names."""
    counts = ReadCounts()
    for number in range(100):
        counts.drop_unknown_dialect(f"made-up-{number}")
    assert counts.dropped["unknown-dialect (others)"] == 70
    assert (len(counts.dropped), counts.dropped.total()) == (31, 100)
