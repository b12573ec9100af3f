"""`POST /v1/outcomes`: accepted even if the target is unknown, refused with the reason if it has no value."""

from __future__ import annotations

import gzip
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from nightschool.errors import RecordError, StreamUnavailable
from nightschool.outcomes.record import Outcome, from_log_record, parse_outcome
from nightschool_collector.outcomes.bodies import OutcomeBody, answer
from nightschool_collector.outcomes.idempotency import IdempotentWriter

TOPIC, PATH = "ns.outcomes", "/v1/outcomes"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def outcome(**changes: Any) -> dict[str, Any]:
    body = {"target": {"trace_id": TRACE}, "name": "thumb", "value": True, "source": {"kind": "human", "id": "u1"}}
    return {name: value for name, value in {**body, **changes}.items() if value is not ...}


def read_back(record: Any) -> tuple[Outcome, Any]:
    (group,) = ExportLogsServiceRequest.FromString(record.value).resource_logs
    (log,) = group.scope_logs[0].log_records
    return from_log_record(log), log


def post(collector: Any, body: Any, **headers: str) -> Any:
    return collector.post(PATH, body, form="application/json", **headers)


def test_an_outcome_of_an_unknown_target_is_accepted(collector: Any) -> None:
    """Feedback may come before its trace: nothing is looked up, and it is stored under the trace's key."""
    answer = post(collector, outcome(event_id="e-1"))
    assert (answer.status_code, answer.json()) == (202, {"event_id": "e-1", "status": "accepted"})
    (record,) = collector.stored(TOPIC)
    assert record.key == TRACE.encode()
    assert record.headers["ns-tenant"] == b"acme"
    found, log = read_back(record)
    assert (found.name, found.value, found.source_id, found.id) == ("thumb", True, "u1", "e-1")
    assert log.observed_time_unix_nano == 1_790_000_000_123_456_789


def test_without_an_event_id_equal_content_has_one_id(collector: Any) -> None:
    """The answer has the id that removes duplicates: a hash of the content, so that a copy counts once."""
    first, again, other = (post(collector, outcome(value=value)).json()["event_id"] for value in (True, True, False))
    assert first == again != other


def test_a_batch_is_answered_in_order(collector: Any) -> None:
    """A batch is durable as a whole and answered with one id each."""
    answer = post(collector, {"outcomes": [outcome(event_id=f"e-{n}") for n in range(3)]})
    assert answer.status_code == 202
    assert answer.json() == {"outcomes": [{"event_id": f"e-{n}", "status": "accepted"} for n in range(3)]}
    assert sorted(read_back(record)[0].id for record in collector.stored(TOPIC)) == ["e-0", "e-1", "e-2"]


def test_an_item_of_a_batch_is_wrong_alone(collector: Any) -> None:
    """The valid items of a batch are stored; each wrong item has its reason, in its place."""
    answer = post(collector, {"outcomes": [outcome(event_id="a"), outcome(value=...), "\ud800", outcome(event_id="b")]})
    said = answer.json()["outcomes"]
    assert (answer.status_code, [item["status"] for item in said]) == (202, ["accepted", "rejected", "rejected", "accepted"])
    assert said[1]["error"].startswith("an outcome needs a 'value'")
    assert {read_back(record)[0].id for record in collector.stored(TOPIC)} == {"a", "b"}


def test_a_replay_is_a_duplicate_and_stored_once(collector: Any) -> None:
    """The same id with the same body is a duplicate: if the id is in the header, in the body, or the content's hash."""
    for body, headers in ((outcome(event_id="e-1"), {}), (outcome(), {"idempotency_key": "e-2"}), (outcome(), {})):
        answers = [post(collector, body, **headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        assert [answer.json()["status"] for answer in answers] == ["accepted", "duplicate"]
    twice = post(collector, {"outcomes": [outcome(event_id="e-3"), outcome(event_id="e-1"), outcome(event_id="e-3")]})
    assert [item["status"] for item in twice.json()["outcomes"]] == ["accepted", "duplicate", "duplicate"]
    assert len(collector.stored(TOPIC)) == 4


def test_an_id_with_another_body_is_a_conflict(collector: Any) -> None:
    """409, and the first record stands; a correction needs an id of its own. Another tenant's id is another id."""
    assert post(collector, outcome(), idempotency_key="e-1").status_code == 202
    answer = post(collector, outcome(value=False), idempotency_key="e-1")
    assert answer.status_code == 409
    assert answer.json()["status"] == "conflict"
    assert "event_id 'e-1' was used before with another body" in answer.json()["error"]
    batch = post(collector, {"outcomes": [outcome(event_id="e-1", value=3), outcome(event_id="e-2")]})
    assert (batch.status_code, [item["status"] for item in batch.json()["outcomes"]]) == (202, ["conflict", "accepted"])
    assert post(collector, outcome(value=False), idempotency_key="e-1", tenant="globex").status_code == 202
    assert len(collector.stored(TOPIC)) == 3


def test_what_was_not_stored_is_not_remembered() -> None:
    """After a refusal because the stream is down, the retry is not a duplicate; and the memory stays bounded."""
    stored: list[Outcome] = []
    down = [True]

    def append(tenant: str, outcomes: Any) -> None:
        if down.pop() if down else False:
            raise StreamUnavailable("down")
        stored.extend(outcomes)

    writer = IdempotentWriter(append, num_remembered=2)
    first, second, third = (parse_outcome(outcome(event_id=f"e-{n}")) for n in range(3))
    with pytest.raises(StreamUnavailable):
        writer.write("acme", [first])
    assert [verdict.status for verdict in writer.write("acme", [first, second, third])] == ["accepted"] * 3
    assert [verdict.status for verdict in writer.write("acme", [second, third])] == ["duplicate"] * 2
    # Its id was forgotten, so it is stored again; the night drops the second record.
    assert [verdict.status for verdict in writer.write("acme", [first])] == ["accepted"]
    assert [item.id for item in stored] == ["e-0", "e-1", "e-2", "e-0"]


def test_copies_that_come_together_are_stored_once() -> None:
    """A page that is closed sends in two ways at the same moment: one is accepted, the others are duplicates."""
    stored: list[Outcome] = []
    together = threading.Barrier(4)

    def append(tenant: str, outcomes: Any) -> None:
        time.sleep(0.05)  # as a disk takes its time
        stored.extend(outcomes)

    writer = IdempotentWriter(append)

    def send(number: int) -> str:
        together.wait()
        (verdict, _) = writer.write(
            "acme", [parse_outcome(outcome(event_id="e-1")), parse_outcome(outcome(event_id=f"x-{number}"))]
        )
        return verdict.status

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(send, range(4))) == ["accepted", "duplicate", "duplicate", "duplicate"]
    assert [item.id for item in stored].count("e-1") == 1
    assert len(stored) == 5


def test_the_id_that_is_answered_is_the_one_that_is_stored() -> None:
    """It is a hash of the redacted content, so that no hash of what was redacted is kept."""
    stored: list[Outcome] = []

    def redact(tenant: str, item: Outcome) -> Outcome:
        if item.comment == "?":
            raise RecordError("the comment cannot be redacted")
        return replace(item, comment="<EMAIL>")

    writer = IdempotentWriter(lambda tenant, outcomes: stored.extend(outcomes), redact=redact)
    first, again, wrong = writer.write(
        "acme", [parse_outcome(outcome(comment=text)) for text in ("a@b.example", "c@d.example", "?")]
    )
    assert stored[0].event_id == first.event_id == again.event_id == parse_outcome(outcome(comment="<EMAIL>")).id
    assert (again.status, wrong.status, len(stored)) == ("duplicate", "rejected", 1)
    assert answer(OutcomeBody([], is_batch=False), [wrong]).status_code == 400


def test_idempotency_key_is_the_event_id(collector: Any) -> None:
    """The header names the event when the body does not, and must not contradict it."""
    assert post(collector, outcome(), idempotency_key="k-1").json()["event_id"] == "k-1"
    assert post(collector, outcome(event_id="k-1"), idempotency_key="k-1").status_code == 202
    answer = post(collector, outcome(event_id="e-1"), idempotency_key="k-1")
    assert answer.status_code == 400
    assert answer.json()["error"] == "Idempotency-Key is 'k-1' but event_id is 'e-1'; send one, or the same"
    assert post(collector, {"outcomes": [outcome()]}, idempotency_key="k-1").status_code == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (outcome(value=...), "needs a 'value', or an 'edit' or a 'demonstration' with 'final_text'"),
        (outcome(edit={"final_text": "x"}), "has one of value, edit, demonstration, got value and edit"),
        (outcome(target={}), "exactly one of trace_id"),
        (outcome(target={"trace_id": "xyz"}), "32 lowercase hex digits"),
        (outcome(name=""), "name is ''"),
        (outcome(source=...), "source is None"),
        (outcome(rating=5), "unknown field 'rating'; allowed are"),
        (b'{"value": NaN}', "NaN is not JSON"),
        (b'{"target": ', "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[" * 50_000, "nested too deep"),
        ([outcome()], "an outcome is a JSON object, got list"),
        ({"outcomes": []}, "1 to 1000 outcomes"),
        ({"outcomes": [outcome()] * 1001}, "got 1001 outcomes"),
        ({"outcomes": [outcome()], "tenant": "x"}, "nothing else"),
        ({"outcomes": [outcome(value=...), outcome(name="")]}, "outcomes[0]: an outcome needs a 'value'"),
    ],
)
def test_a_useless_outcome_is_refused_with_the_reason(collector: Any, body: Any, message: str) -> None:
    """What has no value or cannot be understood is a 400 that says what came and what is allowed."""
    answer = post(collector, body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert collector.everything_stored() == []


def test_content_types_and_encodings(collector: Any) -> None:
    """JSON may come as text/plain (a browser's beacon) and compressed; another type is refused with what is allowed."""
    body = b'{"target": {"response_id": "r"}, "name": "n", "value": 1, "source": {"kind": "code"}}'
    assert collector.post(PATH, body, form="text/plain;charset=UTF-8").status_code == 202
    assert post(collector, gzip.compress(body), content_encoding="gzip").status_code == 202
    answer = collector.post(PATH, body, form="application/xml")
    assert (answer.status_code, answer.json()["error"]) == (
        415,
        "Content-Type is 'application/xml'; allowed are application/json and text/plain, both with JSON",
    )
