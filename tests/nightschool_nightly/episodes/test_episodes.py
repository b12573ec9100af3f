"""Episodes out of a real stream: joins, corrections, tenants, and records that cannot be used."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from nightschool import semconv as names
from nightschool.episode import Episode, SampledTokens
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.stream import Record, Stream
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.episodes.counts import ReadCounts
from nightschool_nightly.episodes.reasons import DropReason
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.freeze.freeze import freeze_whole_stream
from nightschool_nightly.freeze.manifest import NightManifest

T0 = 1_790_000_000 * 10**9
HOUR = 3600 * 10**9


def trace_id(number: int) -> str:
    return f"{number:032x}"


def any_value(value: Any) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=[any_value(item) for item in value]))
        case _:
            return AnyValue(string_value=value)


def messages(role: str, text: str) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])


class Day:
    """What a stream holds, written the way the collector writes it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.spans = itertools.count(1)

    def span(
        self,
        trace: int,
        *,
        tenant: str | None = "acme",
        resource: Sequence[str] = ("acme",),
        span: int | None = None,
        start_ns: int = T0,
        **attributes: Any,
    ) -> Record:
        """A record with one span; `attributes` are named by their constants in semconv."""
        request = ExportTraceServiceRequest()
        for number, name in enumerate(resource):
            part = request.resource_spans.add()
            part.resource.attributes.add(key=names.TENANT_ID).value.string_value = name
            found = part.scope_spans.add().spans.add(
                trace_id=trace.to_bytes(16, "big"), name="chat m", start_time_unix_nano=start_ns
            )
            found.span_id = ((span or next(self.spans)) + 1000 * number).to_bytes(8, "big")
            found.kind = Span.SPAN_KIND_CLIENT
            found.attributes.extend(
                KeyValue(key=getattr(names, key), value=any_value(value)) for key, value in attributes.items()
            )
        return self.record(trace_id(trace).encode(), request.SerializeToString(), tenant)

    def app(self, trace: int, question: str = "q", answer: str = "a", **options: Any) -> Record:
        """The span of a model call as the app saw it."""
        content = {"GEN_AI_INPUT_MESSAGES": messages("user", question), "GEN_AI_OUTPUT_MESSAGES": messages("assistant", answer)}
        return self.span(trace, **{"GEN_AI_OPERATION_NAME": "chat", **content, **options})

    def server(self, trace: int, response: str, **options: Any) -> Record:
        """The span of a model call as our server saw it."""
        tokens: dict[str, Any] = {
            "PROMPT_TOKEN_IDS": [1, 2, 3],
            "COMPLETION_TOKEN_IDS": [4, 5],
            "COMPLETION_LOGPROBS": [-0.5, -1.5],
        }
        said = {"SPAN_SIDE": "server", "GEN_AI_RESPONSE_ID": response, "RELEASE": "f" * 64}
        return self.app(trace, **{**said, **tokens, **options})

    def outcome(self, *, received_ns: int = T0 + HOUR, tenant: str | None = "acme", **fields: Any) -> Record:
        """An outcome; by default a rater's choice of queue."""
        outcome = Outcome(**{"name": "queue", "source_id": "ann", **fields})
        resource = tenant or "acme"
        value = to_logs_request(outcome, tenant=resource, received_ns=received_ns).SerializeToString()
        return self.record(outcome.key, value, tenant)

    @staticmethod
    def record(key: bytes, value: bytes, tenant: str | None) -> Record:
        return Record(key, value, {names.HEADER_TENANT: tenant.encode()} if tenant else {})

    def append(self, *records: Record, topic: str = names.TOPIC_SPANS) -> None:
        self.stream.append(topic, records)

    def outcomes(self, *records: Record) -> None:
        self.append(*records, topic=names.TOPIC_OUTCOMES)

    def freeze(self, *, last: NightManifest | None = None, tenant: str = "acme") -> NightManifest:
        return freeze_whole_stream(self.stream, tenant=tenant, last=last)


@pytest.fixture
def day(tmp_path: Path) -> Iterator[Day]:
    with SqliteStream(tmp_path / "stream.db", partitions=3) as stream:
        yield Day(stream)


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., tuple[list[BuiltEpisode], ReadCounts]]:
    """Builds the episodes of a day."""
    numbers = itertools.count()

    def run(day: Day, *, manifest: NightManifest | None = None, tenant: str = "acme") -> tuple[list[BuiltEpisode], ReadCounts]:
        store = EpisodeStore(tmp_path / f"store-{next(numbers)}")
        store.build(day.stream, manifest or day.freeze(tenant=tenant))
        built = list(store.episodes(tenant))
        store.close()
        return built, store.counts

    return run


Build = Callable[..., tuple[list[BuiltEpisode], ReadCounts]]


def only(built: Sequence[BuiltEpisode]) -> Episode:
    (found,) = built
    return found.episode


def current(episode: Episode) -> list[Any]:
    """The current value of each slot."""
    return [history.current.final_text or history.current.value for history in episode.outcomes]


# --- calls --------------------------------------------------------------------------------------------------------------
def test_the_servers_tokens_join_the_apps_call_by_response_id(day: Day, build: Build) -> None:
    """One call: the app's content, user and task with the server's tokens and release, even from another trace."""
    day.append(
        day.server(99, "r1", PROMPT_TOKEN_IDS=[7, 8]),
        day.app(1, "where?", "here", GEN_AI_RESPONSE_ID="r1", SUBJECT="u", TASK="t"),
    )
    built, counts = build(day)
    episode = only(built)
    assert (episode.trace_id, episode.subject, episode.task, episode.tenant) == (trace_id(1), "u", "t", "acme")
    (call,) = episode.calls
    assert (call.messages[0].text, call.answer.text, call.release) == ("where?", "here", "f" * 64)
    assert call.tokens == SampledTokens((7, 8), (4, 5), (-0.5, -1.5))
    assert counts.span_records == 2 and not counts.dropped


def test_a_servers_call_that_no_app_saw_is_an_episode_of_its_own(day: Day, build: Build) -> None:
    """The traffic of an app without a tracer is still there, with the tokens."""
    day.append(day.server(5, "r9"), day.app(1, GEN_AI_RESPONSE_ID="r1"))
    built, _ = build(day)
    assert [item.episode.trace_id for item in built] == [trace_id(1), trace_id(5)]
    assert [item.episode.calls[0].tokens is not None for item in built] == [False, True]


def test_a_response_id_that_two_traces_claim_joins_neither(day: Day, build: Build) -> None:
    """One of them is mistaken and nothing says which: the server's call stands alone, and the outcome is ambiguous."""
    day.append(day.app(1, GEN_AI_RESPONSE_ID="r1"), day.app(2, GEN_AI_RESPONSE_ID="r1"), day.server(9, "r1"))
    day.outcomes(day.outcome(target={"response_id": "r1"}, value="fraud"))
    built, counts = build(day)
    assert [item.episode.calls[0].tokens is not None for item in built] == [False, False, True]
    assert [current(item.episode) for item in built] == [[], [], []]
    assert counts.dropped == {"ambiguous-outcome": 1}


@pytest.mark.parametrize(
    "tokens",
    [
        {"COMPLETION_LOGPROBS": [-0.5]},
        {"COMPLETION_TOKEN_IDS": "4,5"},
        {"PROMPT_TOKEN_IDS": []},
        {"PROMPT_TOKEN_IDS": "abc"},
        {"PROMPT_TOKEN_IDS": [1, -2]},
        {"COMPLETION_LOGPROBS": [-0.5, float("nan")]},
        {"COMPLETION_LOGPROBS": ["low", "lower"]},
        {"COMPLETION_TOKEN_IDS": 4, "COMPLETION_LOGPROBS": -0.5},
    ],
)
def test_tokens_count_only_when_complete(tokens: dict[str, Any], day: Day, build: Build) -> None:
    """Ids and log-probabilities that are missing, do not fit together or are not numbers count as not recorded."""
    day.append(day.app(1, GEN_AI_RESPONSE_ID="r1"), day.server(1, "r1", **tokens))
    built, _ = build(day)
    assert only(built).calls[0].tokens is None


def test_calls_of_a_trace_are_in_order_of_start(day: Day, build: Build) -> None:
    """One trace is one episode, its calls by start, whatever order they were stored in."""
    day.append(*(day.app(1, answer=str(at), start_ns=T0 + at) for at in (2, 1, 3)))
    built, _ = build(day)
    assert [call.answer.text for call in only(built).calls] == ["1", "2", "3"]
    assert only(built).started_ns == T0 + 1


def test_a_call_without_content_is_counted(day: Day, build: Build) -> None:
    """Content that was not captured, and answers that cannot be read, leave no episode, and a count."""
    day.append(
        day.app(1, GEN_AI_INPUT_MESSAGES=""),
        day.app(2, GEN_AI_OUTPUT_MESSAGES="[]"),
        day.app(3, GEN_AI_SYSTEM_INSTRUCTIONS="{broken"),
    )
    built, counts = build(day)
    assert built == [] and counts.dropped == {"call-without-content": 3}


def test_tools_and_sampling_parameters_come_along(day: Day, build: Build) -> None:
    """Tool definitions are nested for chat templates, and the request is as sent."""
    tool = {"type": "function", "name": "lookup", "parameters": {}}
    day.append(
        day.app(
            1, GEN_AI_TOOL_DEFINITIONS=json.dumps([tool]), GEN_AI_REQUEST_TEMPERATURE=0.5, GEN_AI_RESPONSE_FINISH_REASONS=["stop"]
        )
    )
    built, _ = build(day)
    (call,) = only(built).calls
    assert call.tools == ({"type": "function", "function": {"name": "lookup", "parameters": {}}},)
    assert (call.request, call.finish_reason) == ({"temperature": 0.5}, "stop")


def test_the_server_knows_best_what_was_sent(day: Day, build: Build) -> None:
    """A package of the app's may record less of a request than arrived, or defaults that were never sent."""
    seen = {"GEN_AI_REQUEST_TEMPERATURE": 0.5, "REQUEST_PARAMETERS": json.dumps({"min_p": 0.1, "echo": None})}
    app = {"GEN_AI_REQUEST_TEMPERATURE": 1.0, "GEN_AI_REQUEST_TOP_K": 3}
    day.append(day.server(99, "r1", **seen), day.app(1, GEN_AI_RESPONSE_ID="r1", **app))
    built, _ = build(day)
    (call,) = only(built).calls
    assert call.request == {"temperature": 0.5, "top_k": 3, "min_p": 0.1, "echo": None}


def test_a_span_sent_twice_counts_once(day: Day, build: Build) -> None:
    """An exporter that retries changes nothing but a count; the first copy stays."""
    day.append(day.app(1, answer="first", span=7), day.app(1, answer="second", span=7))
    day.append(day.server(1, "r1", span=8), day.server(1, "r1", span=8))
    built, counts = build(day)
    assert only(built).calls[0].answer.text == "first"
    assert counts.dropped == {"duplicate-span": 2}


# --- outcomes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "target",
    [
        {"trace_id": trace_id(1)},
        {"trace_id": trace_id(1), "span_id": "00000000000000aa"},
        {"response_id": "r1"},
        {"episode_id": "e1"},
        {"conversation_id": "c1"},
        {"conversation_id": "c1", "turn": 0},
    ],
)
def test_an_outcome_finds_its_trace(target: dict[str, Any], day: Day, build: Build) -> None:
    """By trace, response, episode or conversation, stored before its trace or after, and no other trace gets it."""
    day.outcomes(day.outcome(target=target, value="fraud"))
    day.append(
        day.app(1, GEN_AI_RESPONSE_ID="r1", EPISODE_ID="e1", GEN_AI_CONVERSATION_ID="c1"), day.app(2, GEN_AI_RESPONSE_ID="r2")
    )
    built, counts = build(day)
    assert [current(item.episode) for item in built] == [["fraud"], []]
    assert not counts.dropped


def test_an_outcome_finds_the_app_by_the_servers_trace_id_too(day: Day, build: Build) -> None:
    """A response joined from the server's span is the app's episode: one response id, one trace."""
    day.append(day.server(99, "r1"), day.app(1, GEN_AI_RESPONSE_ID="r1"))
    day.outcomes(day.outcome(target={"response_id": "r1"}, value="fraud"))
    built, _ = build(day)
    assert current(only(built)) == ["fraud"]


def test_a_correction_replaces_and_keeps_the_history(day: Day, build: Build) -> None:
    """The last outcome of a slot counts, by the time of the event and then of arrival, not by order in the stream."""
    target = {"trace_id": trace_id(1)}
    day.append(day.app(1))
    day.outcomes(
        day.outcome(target=target, value="late", occurred_at_ns=T0 + 3),
        day.outcome(target=target, value="early", occurred_at_ns=T0 + 1),
        day.outcome(target=target, value="tie, later in", occurred_at_ns=T0 + 2, received_ns=T0 + 2 * HOUR),
        day.outcome(target=target, value="tie", occurred_at_ns=T0 + 2, received_ns=T0 + HOUR),
    )
    built, _ = build(day)
    (history,) = only(built).outcomes
    assert [revision.value for revision in history.revisions] == ["early", "tie", "tie, later in", "late"]
    assert history.current.value == "late"


def test_a_clock_ahead_of_ours_does_not_win_forever(day: Day, build: Build) -> None:
    """An event dated after its arrival counts as just arrived, so that a correction the next day still replaces it."""
    target = {"trace_id": trace_id(1)}
    day.append(day.app(1))
    day.outcomes(
        day.outcome(target=target, value="from 2100", occurred_at_ns=T0 + 10**6 * HOUR, received_ns=T0),
        day.outcome(target=target, value="corrected", occurred_at_ns=T0 + HOUR, received_ns=T0 + HOUR),
    )
    built, _ = build(day)
    assert current(only(built)) == ["corrected"]


def test_a_retracted_outcome_is_gone_and_a_later_one_stands(day: Day, build: Build) -> None:
    """Retracting empties the slot, counted; setting it again fills it."""
    for number, operations in ((1, ("set", "retract")), (2, ("set", "retract", "set"))):
        day.append(day.app(number))
        for at, op in enumerate(operations):
            day.outcomes(day.outcome(target={"trace_id": trace_id(number)}, value="fraud", op=op, occurred_at_ns=T0 + at))
    built, counts = build(day)
    assert [current(item.episode) for item in built] == [[], ["fraud"]]
    assert counts.dropped == {"retracted-outcome": 1}


def test_two_raters_have_two_slots(day: Day, build: Build) -> None:
    """Raters do not overwrite one another, and neither do two names of one rater."""
    target = {"trace_id": trace_id(1)}
    day.append(day.app(1))
    day.outcomes(
        day.outcome(target=target, value="fraud", source_id="ann"),
        day.outcome(target=target, value="card", source_id="bob"),
        day.outcome(target=target, name="thumb", value=True, source_id="ann"),
    )
    built, _ = build(day)
    assert sorted(map(str, current(only(built)))) == ["True", "card", "fraud"]


def test_an_outcome_sent_twice_counts_once(day: Day, build: Build) -> None:
    """The same event is one revision, by its id or, without one, by its content."""
    target = {"trace_id": trace_id(1)}
    day.append(day.app(1))
    for event_id in ("", "id-1"):
        one = day.outcome(target=target, value="fraud", event_id=event_id, name=f"queue{event_id}")
        again = day.outcome(target=target, value="fraud", event_id=event_id, name=f"queue{event_id}", received_ns=T0 + 2 * HOUR)
        day.outcomes(one, again)
    built, counts = build(day)
    assert [len(history.revisions) for history in only(built).outcomes] == [1, 1]
    assert counts.dropped == {"duplicate-outcome": 2}


def test_a_conversation_of_several_traces_needs_a_turn(day: Day, build: Build) -> None:
    """Without a turn the outcome could mean any of them and is left out, counted; with one it means that turn."""
    for number in (3, 2, 1):
        day.append(day.app(number, GEN_AI_CONVERSATION_ID="c1", start_ns=T0 - number))
    day.outcomes(day.outcome(target={"conversation_id": "c1"}, value="whole"))
    day.outcomes(day.outcome(target={"conversation_id": "c1", "turn": 1}, value="second"))
    built, counts = build(day)
    assert {item.episode.trace_id: current(item.episode) for item in built} == {
        trace_id(1): [],
        trace_id(2): ["second"],
        trace_id(3): [],
    }
    assert counts.dropped == {"ambiguous-outcome": 1}


def test_an_outcome_without_trace_is_counted(day: Day, build: Build) -> None:
    """It may come before its trace; while there is no trace with that key, it is only counted."""
    day.append(day.app(1))
    day.outcomes(
        day.outcome(target={"trace_id": trace_id(8)}, value="x"),
        day.outcome(target={"join_key": {"ns": "t", "id": "1"}}, value="x"),
    )
    built, counts = build(day)
    assert current(only(built)) == [] and counts.dropped == {"outcome-without-trace": 2}


# --- tenants ------------------------------------------------------------------------------------------------------------
def test_another_tenants_records_do_not_exist(day: Day, build: Build) -> None:
    """The same trace and response ids in another tenant's records do not change content, tokens or outcomes of ours."""
    forged: dict[str, Any] = {"tenant": "globex", "resource": ("acme",)}
    day.append(day.app(1, answer="globex was here", span=7, **forged), day.server(1, "r1", PROMPT_TOKEN_IDS=[6, 6, 6], **forged))
    day.append(day.app(1, answer="ours", span=7, GEN_AI_RESPONSE_ID="r1"))
    day.outcomes(day.outcome(target={"trace_id": trace_id(1)}, value="bad", tenant="globex"))
    built, counts = build(day)
    episode = only(built)
    assert (episode.calls[0].answer.text, episode.calls[0].tokens, episode.outcomes) == ("ours", None, ())
    assert (counts.span_records, counts.outcome_records, dict(counts.dropped)) == (1, 0, {})
    (theirs,) = build(day, tenant="globex")[0]
    assert {call.answer.text for call in theirs.episode.calls} == {"globex was here", "a"}


def test_a_record_without_header_is_of_the_tenant_its_resource_names(day: Day, build: Build) -> None:
    """Another collector does not write our header: then the resource says whose spans and outcomes are."""
    day.append(day.app(1, tenant=None), day.app(2, tenant=None, resource=("globex",)))
    day.outcomes(day.outcome(target={"trace_id": trace_id(1)}, value="fraud", tenant=None))
    built, counts = build(day)
    assert only(built).trace_id == trace_id(1) and current(only(built)) == ["fraud"]
    assert (counts.span_records, counts.outcome_records) == (1, 1)


def test_a_record_of_two_tenants_is_nobodys(day: Day, build: Build) -> None:
    """Without a header, a record whose resources name several tenants, or none, is left out, counted."""
    day.append(day.app(1, tenant=None, resource=("acme", "globex")), day.app(2, tenant=None, resource=()), day.app(3))
    built, counts = build(day)
    assert only(built).trace_id == trace_id(3)
    assert counts.dropped == {"record-without-tenant": 2}


# --- records that make no sense -----------------------------------------------------------------------------------------
def test_records_that_cannot_be_read_are_counted(day: Day, build: Build) -> None:
    """Bytes that are not OTLP, a log record that is not an outcome, and impossible times do not stop a night."""
    day.append(day.record(b"k", b"\xff\xff", "acme"), day.app(1), day.app(2, start_ns=2**64 - 1))
    day.outcomes(
        day.record(b"k", b"\xff\xff", "acme"),
        day.record(b"k", b"\x0a\x04\x12\x02\x12\x00", "acme"),
        day.outcome(target={"trace_id": trace_id(1)}, value="fraud"),
        day.outcome(target={"trace_id": trace_id(2)}, value="card", occurred_at_ns=T0, received_ns=2**64 - 1),
    )
    built, counts = build(day)
    assert [current(item.episode) for item in built] == [["fraud"], ["card"]]
    assert counts.dropped == {"undecodable-span-record": 1, "undecodable-outcome-record": 2}


def test_an_empty_day_has_no_episodes(day: Day, build: Build) -> None:
    """Neither topics nor records: nothing, without an error."""
    assert build(day) == ([], ReadCounts())


# --- nights -------------------------------------------------------------------------------------------------------------
def test_new_is_what_no_night_has_read(day: Day, build: Build) -> None:
    """A trace is new when any of it is: itself, its server's span, an outcome or a retraction that came late."""
    for number in (1, 2, 3, 4):
        day.append(day.app(number, span=number, GEN_AI_RESPONSE_ID=f"r{number}"))
    day.outcomes(
        day.outcome(target={"trace_id": trace_id(3)}, value="x"), day.outcome(target={"trace_id": trace_id(4)}, value="x")
    )
    last = day.freeze()
    day.append(day.app(5), day.server(2, "r2", span=50), day.app(1, span=1))
    day.outcomes(
        day.outcome(target={"trace_id": trace_id(3)}, value="x", op="retract", occurred_at_ns=T0 + 2 * HOUR),
        day.outcome(target={"trace_id": trace_id(4)}, value="x", received_ns=T0 + 2 * HOUR),
    )
    built, _ = build(day, manifest=day.freeze(last=last))
    assert {item.episode.trace_id: item.is_new for item in built} == {
        trace_id(1): False,  # sent twice
        trace_id(2): True,  # its tokens came late
        trace_id(3): True,  # retracted
        trace_id(4): False,  # its outcome sent twice
        trace_id(5): True,
    }


def test_what_is_left_out_is_counted_in_the_night_that_reads_it(day: Day, build: Build) -> None:
    """The next night reads the same records again, for what came late to them, and counts only what is new to it."""

    def add(number: int) -> None:
        """One of everything that is left out."""
        day.append(
            day.span(number, tenant=None, resource=("a", "b")),
            day.record(b"k", b"\xff", "acme"),
            *[day.app(number, span=number, GEN_AI_RESPONSE_ID=f"r{number}")] * 2,
            day.app(number, span=number + 50, GEN_AI_RESPONSE_ID=f"r{number}"),
            day.span(number + 100, span=number + 100, GEN_AI_OPERATION_NAME="chat"),
        )
        given = day.outcome(target={"trace_id": trace_id(number)}, value="x", event_id=f"e{number}")
        day.outcomes(
            given,
            given,
            day.outcome(target={"trace_id": trace_id(number)}, value="y", event_id=f"e{number}"),
            day.outcome(target={"trace_id": trace_id(number)}, value="x", op="retract", occurred_at_ns=T0 + 2 * HOUR),
            day.outcome(target={"trace_id": trace_id(number + 500)}, value="x"),
        )

    add(1)
    first = day.freeze()
    _, counted = build(day, manifest=first)
    assert len(counted.dropped) >= 8, counted.dropped
    _, again = build(day, manifest=day.freeze(last=first))
    assert again.dropped == {}
    add(2)
    _, later = build(day, manifest=day.freeze(last=first))
    assert later.dropped == counted.dropped


def test_an_outcome_becomes_an_orphan_once(day: Day, build: Build) -> None:
    """It is counted in the night in which its window has closed, and in no later one."""
    day.outcomes(day.outcome(target={"trace_id": trace_id(9)}, value="x"))
    nights = [replace(day.freeze(), frozen_at_ms=T0 // 1_000_000)]
    for days in (31, 32):
        nights.append(replace(day.freeze(last=nights[-1]), frozen_at_ms=T0 // 1_000_000 + days * 86_400_000))
    found = [build(day, manifest=night)[1].dropped for night in nights]
    assert found == [{DropReason.OUTCOME_WITHOUT_TRACE: 1}, {DropReason.ORPHANED_OUTCOME: 1}, {}]


def test_records_after_the_frozen_end_are_not_read(day: Day, build: Build) -> None:
    """What arrives while a night runs belongs to the next one."""
    day.append(day.app(1))
    manifest = day.freeze()
    day.append(day.app(2))
    assert [item.episode.trace_id for item in build(day, manifest=manifest)[0]] == [trace_id(1)]


def test_order_of_arrival_does_not_matter(tmp_path: Path, build: Build) -> None:
    """The same records in any interleaving, over any number of partitions, give the same episodes in the same order."""
    found = []
    for number, partitions in enumerate((1, 3, 5)):
        with SqliteStream(tmp_path / f"{number}.db", partitions=partitions) as stream:
            day = Day(stream)
            spans = [day.app(n, answer=str(n), span=n, GEN_AI_RESPONSE_ID=f"r{n}") for n in range(1, 30)]
            spans += [day.server(n + 100, f"r{n}", span=n + 100) for n in range(1, 30, 2)]
            outcomes = [
                day.outcome(target={"response_id": f"r{n}"}, value=f"v{at}", occurred_at_ns=T0 + at)
                for n in range(1, 30, 3)
                for at in range(3)
            ]
            shuffle = random.Random(number).shuffle
            shuffle(spans), shuffle(outcomes)
            day.append(*spans)
            day.outcomes(*outcomes)
            found.append(build(day)[0])
    assert len(found[0]) == 29
    assert found[0] == found[1] == found[2]
    assert [item.episode.trace_id for item in found[0]] == sorted(item.episode.trace_id for item in found[0])
