"""Outcome records: JSON to record to OTLP and back, and every field that can be wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from nightschool import semconv
from nightschool.errors import RecordError
from nightschool.outcomes.record import SOURCE_KINDS, TARGET_KINDS, Outcome, from_log_record, parse_outcome, to_logs_request

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PLAIN = {"target": {"trace_id": TRACE}, "name": "queue", "value": "cards", "source": {"kind": "human", "id": "u1"}}


def body(**changes: Any) -> dict[str, Any]:
    """A good outcome with changes; a change to ... removes the field."""
    return {name: value for name, value in (PLAIN | changes).items() if value is not ...}


def through_otlp(outcome: Outcome, *, received_ns: int = 5 * 10**18) -> Outcome:
    """The outcome after it was stored by the collector and read by the night, through bytes."""
    data = to_logs_request(outcome, tenant="acme", received_ns=received_ns).SerializeToString()
    return from_log_record(only_record(ExportLogsServiceRequest.FromString(data)))


def only_record(request: ExportLogsServiceRequest) -> LogRecord:
    [[[record]]] = [[scope.log_records for scope in resource.scope_logs] for resource in request.resource_logs]
    return record


# --- round trips ------------------------------------------------------------------------------------------------------
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXT = st.text(CHARACTERS, min_size=1, max_size=40)


def hex_id(digits: int) -> st.SearchStrategy[str]:
    return st.integers(1, 16**digits - 1).map(lambda number: f"{number:0{digits}x}")


TARGETS = {
    "trace_id": st.fixed_dictionaries({"trace_id": hex_id(32)}, optional={"span_id": hex_id(16)}),
    "response_id": st.fixed_dictionaries({"response_id": TEXT}),
    "conversation_id": st.fixed_dictionaries({"conversation_id": TEXT}, optional={"turn": st.integers(0, 2**31 - 1)}),
    "episode_id": st.fixed_dictionaries({"episode_id": TEXT}),
    "join_key": st.fixed_dictionaries({"join_key": st.fixed_dictionaries({"ns": TEXT, "id": TEXT})}),
}
VALUES = {
    "bool": st.booleans(),
    "int": st.integers(-(2**63) + 1, 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "str": st.text(CHARACTERS, max_size=40),
    "null": st.none(),
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
COMMON: dict[str, st.SearchStrategy[Any]] = {
    "occurred_at": st.integers(946_684_800 * 10**9, 4_102_444_800 * 10**9 - 1),
    "comment": TEXT,
    "metadata": st.dictionaries(TEXT, JSON_VALUES, max_size=3),
    "policy_version": TEXT,
    "event_id": TEXT,
}
SOURCES = st.fixed_dictionaries({"kind": st.sampled_from(SOURCE_KINDS)}, optional={"id": TEXT})
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": TEXT}), max_size=2).map(
    lambda before: [*before, {"role": "assistant", "parts": [{"type": "text", "content": "done"}]}]
)
FINALS = st.fixed_dictionaries({"final_text": TEXT}) | st.fixed_dictionaries({"final_messages": MESSAGES})
ORIGINALS = st.fixed_dictionaries({}, optional={"original_sha256": hex_id(64)})
EDITS = st.builds(lambda final, original: {**final, **original}, FINALS, ORIGINALS)


def bodies(target: st.SearchStrategy[Any], said: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"target": target, "name": TEXT, "source": SOURCES} | said, optional=COMMON)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("said", [*VALUES, "edit", "demonstration", "retract"])
@settings(deadline=None, max_examples=30)  # 40 combinations of them
@given(data=st.data())
def test_an_outcome_survives_json_and_otlp(kind: str, said: str, data: st.DataObject) -> None:
    """JSON -> record -> JSON -> record, and record -> OTLP bytes -> record, lose and change nothing."""
    fields: dict[str, st.SearchStrategy[Any]] = {"value": VALUES[said]} if said in VALUES else {"edit": EDITS}
    if said == "demonstration":
        fields = {"demonstration": FINALS}
    if said == "retract":
        fields = {"op": st.just("retract")}
    outcome = parse_outcome(data.draw(bodies(TARGETS[kind], fields)))
    assert outcome.target_kind == kind
    assert parse_outcome(json.loads(json.dumps(outcome.to_json()))) == outcome
    stored = through_otlp(outcome)
    # What the client left out is filled in: the id from the content, the time from the arrival.
    assert stored == replace(outcome, event_id=outcome.id, occurred_at_ns=outcome.occurred_at_ns or 5 * 10**18)
    assert type(stored.value) is type(outcome.value)
    assert stored.id == outcome.id
    assert through_otlp(stored) == stored


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, bool), (0, int), (1, int), (1.0, float), (-0.0, float), ("", str), ("1", str), (None, type(None)), (2**63 - 1, int)],
)
def test_a_value_keeps_its_type(value: Any, kind: type) -> None:
    """True is not 1, 1 is not 1.0, an empty text is not null, and the largest integer keeps every digit."""
    stored = through_otlp(parse_outcome(body(value=value))).value
    assert type(stored) is kind
    assert repr(stored) == repr(value)


def test_metadata_keeps_numbers_of_any_size() -> None:
    """Metadata travels as JSON text: an integer of a hundred digits comes back whole."""
    assert through_otlp(parse_outcome(body(metadata={"n": 10**100, "x": 0.1}))).metadata == {"n": 10**100, "x": 0.1}


def test_the_final_answer_is_the_text_of_the_last_assistant_message() -> None:
    """Messages may be written with parts or as chat APIs do; both mean the same final answer, and a value has none."""
    thought = {"type": "reasoning", "content": "hm"}
    parts = [{"role": "user", "content": "hi"}, {"role": "assistant", "parts": [thought, {"type": "text", "content": "cards"}]}]
    chat = [{"role": "assistant", "content": "no"}, {"role": "assistant", "content": "cards"}, {"role": "tool", "content": "x"}]
    for final in ({"final_text": "cards"}, {"final_messages": parts}, {"final_messages": chat}):
        assert parse_outcome(body(value=..., edit=final)).final_answer == "cards"
    assert parse_outcome(body()).final_answer is None


def test_the_time_of_an_event_is_nanoseconds_however_small() -> None:
    """Only the unit of a JSON number is guessed from its size; an OTLP time is always in nanoseconds."""
    assert from_log_record(foreign(GEN_AI_EVALUATION_NAME="x")).occurred_at_ns == 42


def test_the_otlp_record_is_the_genai_event() -> None:
    """Other tools see a gen_ai.evaluation.result with name, score and label, on the trace it is about."""
    request = to_logs_request(
        parse_outcome(body(target={"trace_id": TRACE, "span_id": SPAN}, value=True)), tenant="acme", received_ns=7
    )
    assert {item.key: item.value.string_value for item in request.resource_logs[0].resource.attributes} == {
        "nightschool.tenant.id": "acme"
    }
    log = only_record(request)
    held = {item.key: item.value for item in log.attributes}
    assert (log.event_name, log.trace_id.hex(), log.span_id.hex()) == ("gen_ai.evaluation.result", TRACE, SPAN)
    assert (log.time_unix_nano, log.observed_time_unix_nano) == (7, 7)
    assert held[semconv.GEN_AI_EVALUATION_NAME].string_value == "queue"
    assert held[semconv.GEN_AI_EVALUATION_SCORE_VALUE].double_value == 1.0
    assert held[semconv.OUTCOME_VALUE].bool_value is True
    assert semconv.GEN_AI_EVALUATION_SCORE_LABEL not in held


# --- identity ---------------------------------------------------------------------------------------------------------
def test_an_id_never_changes() -> None:
    """The id of this literal outcome is pinned: a different id would make every retry a new outcome."""
    assert parse_outcome(PLAIN).id == "94799b1d7c29b6b7132ebfcae4bfbe8f7a66e45babc74ed1416776c49dbadc37"
    assert parse_outcome(body(event_id="mine")).id == "mine"


def test_an_id_is_that_of_the_content() -> None:
    """The order of fields does not matter; any difference in content does."""
    outcome = parse_outcome(body(metadata={"a": 1, "b": 2}))
    assert parse_outcome(dict(reversed(body(metadata={"b": 2, "a": 1}).items()))).id == outcome.id
    changes: list[dict[str, Any]] = [
        {"value": "loans"},
        {"value": 1},
        {"value": 1.0},
        {"value": True},
        {"value": None},
        {"value": ..., "edit": {"final_text": "cards"}},
        {"value": ..., "op": "retract"},
        {"op": "retract"},
        {"name": "other"},
        {"target": {"trace_id": TRACE, "span_id": SPAN}},
        {"target": {"episode_id": TRACE}},
        {"source": {"kind": "system", "id": "u1"}},
        {"source": {"kind": "human", "id": "u2"}},
        {"occurred_at": 1_769_860_800},
        {"value": ..., "edit": {"final_messages": [{"role": "assistant", "content": "cards"}]}},
        {"value": ..., "demonstration": {"final_text": "cards"}},
        {"comment": "c"},
        {"policy_version": "base"},
        {"metadata": {"a": 1}},
    ]
    ids = [parse_outcome(body(**change)).id for change in changes]
    assert len({outcome.id, parse_outcome(PLAIN).id, *ids}) == len(changes) + 2


def test_an_outcome_of_a_trace_has_the_key_of_its_trace() -> None:
    """Same partition as the trace's spans; any other target has a stable key of its own."""
    assert parse_outcome(body(target={"trace_id": TRACE, "span_id": SPAN})).key == TRACE.encode()
    keys = {
        parse_outcome(body(target=target)).key for target in ({"episode_id": "e"}, {"response_id": "e"}, {"conversation_id": "e"})
    }
    assert len(keys) == 3
    assert all(len(bytes.fromhex(key.decode())) == 32 for key in keys)


# --- what can be wrong ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", [None, [], "x", 3, True])
def test_only_an_object_is_an_outcome(what: Any) -> None:
    """A JSON value that is no object is named by its type."""
    with pytest.raises(RecordError, match=f"an outcome is a JSON object, got {type(what).__name__}"):
        parse_outcome(what)


ALL_KINDS = ", ".join(TARGET_KINDS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"score": 1}, "unknown field 'score'; allowed are comment, demonstration, edit, event_id, "),
        ({"\ud800": 1}, r"unknown field '\\ud800'; allowed are"),
        ({"op": "delete"}, "op is 'delete'; allowed are 'set' and 'retract'"),
        ({"op": ["set"]}, "op is .*; allowed are"),
        ({"value": ...}, "an outcome needs a 'value', or an 'edit' or a 'demonstration' with 'final_text'; got none of them"),
        ({"edit": {"final_text": "x"}}, "an outcome has one of value, edit, demonstration, got value and edit"),
        (
            {"value": ..., "edit": {"final_text": "x"}, "demonstration": {"final_text": "x"}},
            "an outcome has one of .*, got edit and",
        ),
        ({"value": ..., "edit": {}}, "edit is {}; it must hold 'final_text' or 'final_messages', one of the two"),
        ({"value": ..., "edit": {"final_text": "x", "final_messages": []}}, "edit is .*; it must hold .* one of the two"),
        ({"value": ..., "edit": {"final_messages": []}}, r"edit.final_messages is \[\]; it must be a list of 1 to 1000 messages"),
        ({"value": ..., "edit": {"final_messages": "x"}}, "edit.final_messages is 'x'; it must be a list"),
        (
            {"value": ..., "edit": {"final_messages": [{"role": "assistant"}]}},
            r"edit.final_messages\[0\] is .*; it must be {'role'",
        ),
        ({"value": ..., "edit": {"final_messages": [{"parts": []}]}}, r"edit.final_messages\[0\] is .*; it must be {'role'"),
        (
            {"value": ..., "edit": {"final_messages": [{"role": "user", "content": "x"}]}},
            "edit.final_messages holds no assistant message with text",
        ),
        (
            {"value": ..., "edit": {"final_messages": [{"role": "assistant", "content": "x" * (1 << 20)}]}},
            "edit.final_messages has 1048611 bytes; at most 1048576",
        ),
        ({"value": ..., "demonstration": {}}, "demonstration is {}; it must hold 'final_text' or 'final_messages'"),
        (
            {"value": ..., "demonstration": {"final_text": "x", "original_sha256": "a" * 64}},
            "demonstration is .*; it must hold 'final_text' or 'final_messages', one of the two$",
        ),
        ({"value": ..., "edit": {"final_text": ""}}, "edit.final_text is ''; it must be a non-empty string"),
        ({"value": ..., "edit": {"final_text": 3}}, "edit.final_text is 3; it must be a non-empty string"),
        ({"value": ..., "edit": "x"}, "edit is 'x'; it must hold 'final_text'"),
        ({"value": ..., "edit": {"text": "x"}}, "edit is {'text': 'x'}; it must hold"),
        ({"value": ..., "edit": {"final_text": "x" * (1 << 20 | 1)}}, "edit.final_text has 1048577 bytes; at most 1048576"),
        (
            {"value": ..., "edit": {"final_text": "x", "original_sha256": "A" * 64}},
            "edit.original_sha256 is 'AA.*; it must be 64 low",
        ),
        ({"value": ..., "edit": {"final_text": "x", "original_sha256": 3}}, "edit.original_sha256 is 3; it must be 64"),
        ({"value": math.nan}, "value is nan; it must be a bool, a finite number, a string or null"),
        ({"value": math.inf}, "value is inf; it must be"),
        ({"value": -math.inf}, "value is -inf; it must be"),
        ({"value": 2**63}, "value is 9223372036854775808; it must be"),
        ({"value": -(2**63)}, "value is -9223372036854775808; it must be"),
        ({"value": 10**5000}, "value is of type int and too large to print; it must be"),
        ({"value": [1]}, r"value is \[1\]; it must be"),
        ({"value": {"a": 1}}, "value is {'a': 1}; it must be"),
        ({"value": "\ud800"}, "value holds a lone surrogate"),
        ({"value": "é" * (1 << 19 | 1)}, "value has 1048578 bytes; at most 1048576 are allowed"),
        ({"name": ...}, "name is None; it must be a non-empty string"),
        ({"name": ""}, "name is ''; it must be a non-empty string"),
        ({"name": 3}, "name is 3; it must be a non-empty string"),
        ({"name": {"x": "y" * 10**6}}, "name is {'x': 'y{60,80}; it must be a non-empty string$"),
        ({"name": "\udfff"}, "name holds a lone surrogate and is not Unicode text"),
        ({"name": "n" * 257}, "name has 257 bytes; at most 256 are allowed"),
        ({"target": ...}, f"target is None; it must be an object with exactly one of {ALL_KINDS}"),
        ({"target": TRACE}, f"target is '{TRACE}'; it must be an object"),
        ({"target": {}}, rf"target has the fields \[\]; it must have exactly one of {ALL_KINDS}"),
        ({"target": {"trace_id": TRACE, "episode_id": "e"}}, "target has the fields .*; it must have exactly one"),
        ({"target": {"trace_id": TRACE, "turn": 1}}, r"target has the fields \['trace_id', 'turn'\]"),
        ({"target": {"conversation_id": "c", "span_id": SPAN}}, "target has the fields"),
        ({"target": {"span_id": SPAN}}, r"target has the fields \['span_id'\]"),
        ({"target": {"trace_id": TRACE.upper()}}, "target.trace_id is '0AF7.*'; it must be 32 lowercase hex digits"),
        ({"target": {"trace_id": TRACE[:-1]}}, "target.trace_id is .*; it must be 32 lowercase hex digits"),
        ({"target": {"trace_id": "0" * 32}}, "target.trace_id is '0+'; it must be 32 lowercase hex digits, not all zero"),
        (
            {"target": {"trace_id": TRACE, "span_id": "0" * 16}},
            "target.span_id is '0+'; it must be 16 lowercase hex digits, not all zero",
        ),
        ({"target": {"trace_id": TRACE, "span_id": "x"}}, "target.span_id is 'x'; it must be 16"),
        ({"target": {"trace_id": None}}, "target.trace_id is None; it must be a non-empty string"),
        ({"target": {"response_id": ""}}, "target.response_id is ''; it must be a non-empty string"),
        ({"target": {"response_id": "r" * 513}}, "target.response_id has 513 bytes; at most 512"),
        ({"target": {"conversation_id": "c", "turn": -1}}, "target.turn is -1; it must be a whole number from 0"),
        ({"target": {"conversation_id": "c", "turn": True}}, "target.turn is True; it must be"),
        ({"target": {"conversation_id": "c", "turn": 1.5}}, "target.turn is 1.5; it must be"),
        ({"target": {"conversation_id": "c", "turn": 2**31}}, "target.turn is 2147483648; it must be"),
        ({"target": {"join_key": "k"}}, "target.join_key is 'k'; it must be {'ns': ..., 'id': ...}"),
        ({"target": {"join_key": {"ns": "n"}}}, "target.join_key is {'ns': 'n'}; it must be"),
        ({"target": {"join_key": {"ns": "n", "id": 3}}}, "target.join_key.id is 3; it must be a non-empty string"),
        ({"source": ...}, "source is None; it must be {'kind': one of human, code, llm, system, 'id': pseudonym}"),
        ({"source": "human"}, "source is 'human'; it must be"),
        ({"source": {"kind": "human", "name": "x"}}, "source is .*; it must be"),
        ({"source": {"kind": "robot"}}, "source.kind is 'robot'; allowed are human, code, llm, system"),
        ({"source": {"kind": ["human"]}}, "source.kind is .*; allowed are"),
        ({"source": {"kind": "human", "id": 0}}, "source.id is 0; it must be a non-empty string"),
        ({"source": {"kind": "human", "id": []}}, r"source.id is \[\]; it must be a non-empty string"),
        (
            {"occurred_at": -1},
            "occurred_at is -1; it must be RFC 3339 like '2026-01-31T12:00:00Z', or a whole number of seconds,",
        ),
        ({"occurred_at": 20260131}, "occurred_at is 20260131; it must be"),
        ({"occurred_at": 946_684_799}, "occurred_at is 946684799; it must be"),
        ({"occurred_at": 4_102_444_800}, "occurred_at is 4102444800; it must be"),
        ({"occurred_at": 2**63}, "occurred_at is 9223372036854775808; it must be"),
        ({"occurred_at": 1.5}, "occurred_at is 1.5; it must be"),
        ({"occurred_at": True}, "occurred_at is True; it must be"),
        ({"occurred_at": "yesterday"}, "occurred_at is 'yesterday'; it must be"),
        ({"occurred_at": "1969-12-31T23:59:59Z"}, "occurred_at is '1969.*; it must be"),
        ({"occurred_at": "2300-01-01T00:00:00Z"}, "occurred_at is '2300.*; it must be"),
        ({"occurred_at": "0001-01-01T00:00:00+23:59"}, "occurred_at is '0001.*; it must be"),
        ({"occurred_at": "2026-02-30T00:00:00Z"}, "occurred_at is '2026-02-30.*; it must be"),
        ({"comment": ""}, "comment is ''; it must be a non-empty string"),
        ({"comment": "c" * 8193}, "comment has 8193 bytes; at most 8192 are allowed"),
        ({"metadata": []}, r"metadata is \[\]; it must be an object"),
        ({"metadata": "x"}, "metadata is 'x'; it must be an object"),
        ({"metadata": {"a": math.nan}}, "metadata must be what JSON can carry; it holds NaN"),
        ({"metadata": {"a": "\ud800"}}, "metadata must be what JSON can carry; it holds .*a lone surrogate"),
        ({"metadata": {"a": object()}}, "metadata must be what JSON can carry; it holds .*another type"),
        ({"metadata": {"a": "x" * 8192}}, "metadata has 8200 bytes; at most 8192 are allowed"),
        ({"policy_version": 3}, "policy_version is 3; it must be a non-empty string"),
        ({"policy_version": "p" * 257}, "policy_version has 257 bytes"),
        ({"event_id": ""}, "event_id is ''; it must be a non-empty string"),
        ({"event_id": "e" * 257}, "event_id has 257 bytes; at most 256"),
    ],
)
def test_a_bad_field_is_named_with_what_was_got_and_what_is_allowed(changes: dict[str, Any], said: str) -> None:
    """Each field that is wrong, in each way, is one RecordError, and its message is short."""
    with pytest.raises(RecordError, match=f"^{said}") as caught:
        parse_outcome(body(**changes))
    assert len(str(caught.value)) < 300


def test_deep_metadata_is_refused_before_it_can_overflow_anybody() -> None:
    """32 levels are allowed; thousands are a RecordError here, not a RecursionError in a reader."""

    def nested(levels: int) -> dict[str, Any]:
        value: Any = 1
        for _ in range(levels - 1):
            value = [value]
        return {"a": value}

    assert through_otlp(parse_outcome(body(metadata=nested(32)))).metadata == nested(32)
    for levels in (33, 900, 5000):
        with pytest.raises(RecordError, match=r"metadata is .*; it must be an object, at most 32 levels deep"):
            parse_outcome(body(metadata=nested(levels)))


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(sorted({*PLAIN, *TARGET_KINDS, "op", "edit", "kind", "id", "final_text", "final_messages"}))
                | st.text(),
                inner,
            )
        ),
    )
)
def test_no_json_is_another_error(what: Any) -> None:
    """Whatever JSON a client sends is an Outcome or a RecordError."""
    for candidate in (
        what,
        *(
            body(**{name: what})
            for name in (*PLAIN, "op", "edit", "demonstration", "occurred_at", "metadata", "comment", "event_id")
        ),
    ):
        try:
            outcome = parse_outcome(candidate)
        except RecordError:
            continue
        assert through_otlp(outcome).id == outcome.id


# --- times ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("2026-01-31T12:00:00Z", 1769860800 * 10**9),
        ("2026-01-31T12:00:00.000001Z", 1769860800 * 10**9 + 1000),
        ("2026-01-31T13:30:00+01:30", 1769860800 * 10**9),
        ("2026-01-31T12:00:00", 1769860800 * 10**9),
        (1769860800000000001, 1769860800000000001),
        (1769860800000001, 1769860800000001 * 10**3),
        (1769860800001, 1769860800001 * 10**6),
        (1769860801, 1769860801 * 10**9),
        ("1970-01-01T00:00:00Z", None),
        (0, None),
        (None, None),
    ],
)
def test_a_time_is_nanoseconds_since_1970(text: Any, nanoseconds: int | None) -> None:
    """RFC 3339 with any offset (none is UTC), or a number in the unit of a date of our century; 0 is unknown."""
    assert parse_outcome(body(occurred_at=text)).occurred_at_ns == nanoseconds


# --- events of others -------------------------------------------------------------------------------------------------
def foreign(
    name: str = semconv.GEN_AI_EVALUATION_RESULT, *, trace_id: str = TRACE, span_id: str = SPAN, **attributes: Any
) -> LogRecord:
    """An event as another tool emits it; `evaluation_name` stands for gen_ai.evaluation.name and so on."""
    log = LogRecord(event_name=name, trace_id=bytes.fromhex(trace_id), span_id=bytes.fromhex(span_id), time_unix_nano=42)
    kinds = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value", bytes: "bytes_value"}
    for key, value in attributes.items():
        log.attributes.append(KeyValue(key=getattr(semconv, key), value=AnyValue(**{kinds[type(value)]: value})))
    return log


def test_a_foreign_score_is_an_outcome_of_its_span() -> None:
    """Without our attributes it is about its own span, with the label or else the score, from the system."""
    named = {"GEN_AI_EVALUATION_NAME": "Relevance"}
    both = from_log_record(foreign(**named, GEN_AI_EVALUATION_SCORE_VALUE=0.5, GEN_AI_EVALUATION_SCORE_LABEL="pass"))
    assert both == Outcome(
        target={"trace_id": TRACE, "span_id": SPAN}, name="Relevance", value="pass", source_kind="system", occurred_at_ns=42
    )
    score = from_log_record(foreign(**named, GEN_AI_EVALUATION_SCORE_VALUE=0.5, GEN_AI_EVALUATION_EXPLANATION="why"))
    assert (score.value, score.comment) == (0.5, "why")
    assert from_log_record(foreign(**named, GEN_AI_EVALUATION_SCORE_VALUE=1)).value == 1
    assert from_log_record(foreign(**named)).value is None
    assert from_log_record(foreign(**named, GEN_AI_EVALUATION_EXPLANATION="")).comment is None


def test_a_foreign_event_outside_a_trace_is_about_the_response_it_names() -> None:
    """Without a trace id, or with one of zeros, the target is the response id, or there is none."""
    named = {"GEN_AI_EVALUATION_NAME": "Relevance", "GEN_AI_RESPONSE_ID": "chatcmpl-1"}
    for trace_id, span_id in (("", ""), ("00" * 16, "00" * 8)):
        assert from_log_record(foreign(trace_id=trace_id, span_id=span_id, **named)).target == {"response_id": "chatcmpl-1"}
        with pytest.raises(RecordError, match=r"target\.response_id is None"):
            from_log_record(foreign(trace_id=trace_id, span_id=span_id, GEN_AI_EVALUATION_NAME="Relevance"))
    assert from_log_record(foreign(span_id="00" * 8, **named)).target == {"trace_id": TRACE}


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            foreign("exception", GEN_AI_EVALUATION_NAME="x"),
            "log record 'exception' is not a gen_ai.evaluation.result event with a name",
        ),
        (foreign(), "is not a gen_ai.evaluation.result event with a name"),
        (foreign(trace_id="abcd", GEN_AI_EVALUATION_NAME="x"), "target.trace_id is 'abcd'; it must be 32"),
        (foreign(GEN_AI_EVALUATION_NAME=3), "name is 3; it must be a non-empty string"),
        (foreign(GEN_AI_EVALUATION_NAME=b"x"), "name is None; it must be a non-empty string"),
        (foreign(GEN_AI_EVALUATION_NAME="x", GEN_AI_EVALUATION_SCORE_VALUE=math.nan), "value is nan"),
        (foreign(GEN_AI_EVALUATION_NAME="x", OUTCOME_OP="drop"), "op is 'drop'"),
        (foreign(GEN_AI_EVALUATION_NAME="x", OUTCOME_TARGET="{"), "outcome log record cannot be read: "),
        (foreign(GEN_AI_EVALUATION_NAME="x", OUTCOME_TARGET="[" * 100_000), "outcome log record cannot be read: "),
        (foreign(GEN_AI_EVALUATION_NAME="x", OUTCOME_TARGET="3"), "outcome log record cannot be read: "),
        (foreign(GEN_AI_EVALUATION_NAME="x", OUTCOME_TARGET=3), "outcome log record cannot be read: "),
        (foreign(GEN_AI_EVALUATION_NAME="x", OUTCOME_METADATA="[" * 100_000), "outcome log record cannot be read: "),
        (foreign(GEN_AI_EVALUATION_NAME="x", OUTCOME_METADATA="[]"), r"metadata is \[\]"),
        (foreign(GEN_AI_EVALUATION_NAME="x", OUTCOME_METADATA=True), "outcome log record cannot be read: "),
        (foreign(GEN_AI_EVALUATION_NAME="x", OUTCOME_FINAL_TEXT=""), "edit.final_text is ''"),
    ],
)
def test_an_event_that_is_no_outcome_is_refused(log: LogRecord, said: str) -> None:
    """A record that can never be understood is a RecordError with the reason, so that it can be counted."""
    with pytest.raises(RecordError, match=said):
        from_log_record(log)
