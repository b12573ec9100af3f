"""Outcomes from an app: every kind of target and of content, join keys on spans, tokens without a network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

import nightschool
from nightschool.errors import ConfigError, RecordError
from nightschool.keys import subject_of
from nightschool.outcomes.tokens import OutcomeKey, TokenVerifier
from nightschool.sdk.client import Client
from nightschool.testing import Collector, Failure, capture

SECRET = "s" * 40
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with capture() as running:
        yield running


def sent(collector: Collector) -> list[dict[str, Any]]:
    assert nightschool.flush()
    return collector.outcomes


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ({"trace_id": TRACE, "span_id": SPAN}, {"trace_id": TRACE, "span_id": SPAN}),
        ({"conversation_id": "c", "turn": 0}, {"conversation_id": "c", "turn": 0}),
        ({"join_key": ("ticket", 42)}, {"join_key": {"ns": "ticket", "id": "42"}}),
        ({"episode_id": "e"}, {"episode_id": "e"}),
    ],
)
def test_a_target_may_be_narrow(collector: Collector, given: dict[str, Any], target: dict[str, Any]) -> None:
    """One call of a trace, one turn of a conversation, a ticket of any type."""
    assert nightschool.outcome("thumb", True, **given)
    assert sent(collector)[0]["target"] == target


def test_a_span_alone_is_one_of_the_request(collector: Collector) -> None:
    """Inside a request the trace is known."""
    with nightschool.request(task="triage") as req:
        nightschool.outcome("thumb", True, span_id=SPAN)
    assert sent(collector)[0]["target"] == {"trace_id": req.trace_id, "span_id": SPAN}


def test_an_edit_says_what_it_was_made_of(collector: Collector) -> None:
    """The edited text is sent as its hash and messages whole; a demonstration is not an edit."""
    messages = [{"role": "assistant", "content": "cards"}]
    nightschool.outcome("reply", final_text="Dear Mia", original_text="Dear Müller", response_id="r")
    nightschool.outcome("reply", final_messages=messages, response_id="r")
    nightschool.outcome("reply", demonstration="Dear Mia", response_id="r")
    nightschool.outcome("reply", demonstration=messages, response_id="r")
    first, second, third, fourth = sent(collector)
    assert first["edit"] == {"final_text": "Dear Mia", "original_sha256": hashlib.sha256("Dear Müller".encode()).hexdigest()}
    assert second["edit"] == {"final_messages": messages}
    assert third["demonstration"] == {"final_text": "Dear Mia"}
    assert fourth["demonstration"] == {"final_messages": messages}


def test_a_request_carries_the_apps_own_names(collector: Collector) -> None:
    """A join key is on the request's span and on every call after it; the episode on all of them."""
    with nightschool.request(task="triage", episode="e-1") as req:
        nightschool.tag_join("ticket", "T-42")
        with nightschool.model_call("m", []) as call:
            call.answer("x")
        req.tag_join("order", 7)
    assert nightschool.flush()
    seen = {span.name: span.attributes for span in collector.spans}
    tags = {"nightschool.join_key.ticket": "T-42", "nightschool.episode.id": "e-1"}
    assert {**tags, "nightschool.join_key.order": "7"}.items() <= seen["invoke_workflow triage"].items()
    assert tags.items() <= seen["chat m"].items()
    assert "nightschool.join_key.order" not in seen["chat m"]


def test_a_request_that_is_over_can_still_be_tagged(collector: Collector) -> None:
    """The ticket is often opened after the answer: the tag then is a span of the same trace."""
    with nightschool.request(task="triage", user="mia") as req:
        pass
    req.tag_join("ticket", "T-42")
    assert nightschool.flush()
    (late,) = [span for span in collector.spans if span.name == "nightschool.tag_join"]
    assert late.trace_id == req.trace_id
    assert late.attributes["nightschool.join_key.ticket"] == "T-42"
    assert late.attributes["nightschool.task"] == "triage"


def test_a_tag_that_no_outcome_could_name_is_left_out(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged, or raised where the app is strict; outside a request there is nothing to tag."""
    nightschool.tag_join("ticket", "T-1")
    with nightschool.request(task="triage") as req:
        req.tag_join("", "T-42")
        monkeypatch.setenv("NIGHTSCHOOL_STRICT", "1")
        with pytest.raises(RecordError, match=r"target\.join_key\.ns is ''"):
            req.tag_join("", "T-42")
    assert nightschool.flush()
    assert not any(name.startswith("nightschool.join_key.") for span in collector.spans for name in span.attributes)


def client(**changes: Any) -> Client:
    return Client(
        "http://127.0.0.1:9", "acme", api_key="ns-acme", subject_key="pepper", clock=lambda: 1_790_000_000 * 10**9, **changes
    )


def test_a_token_is_minted_where_the_app_is() -> None:
    """It is about the request, as its user, for thirty days; the collector checks it with nothing but the secret."""
    acme = client(outcome_key=("k1", SECRET + "\n"))
    with acme.request(task="triage", user="mia", conversation="c-1") as req:
        token = acme.outcome_token("thumb", "csat")
    claims = TokenVerifier({"acme": [OutcomeKey("k1", SECRET.encode())]}).verify(token, now_s=1_790_000_000)
    assert (claims.trace_id, claims.names, claims.conversation_id) == (req.trace_id, ("thumb", "csat"), "c-1")
    assert claims.rater == subject_of("pepper", "mia")
    assert claims.expires_at - claims.issued_at == 30 * 86_400
    assert "mia" not in token


def test_a_token_may_be_for_any_answer_and_rater() -> None:
    """Outside the request, with the ids that the app kept."""
    acme = client(outcome_key=("k1", SECRET))
    token = acme.outcome_token("thumb", trace_id=TRACE, span_id=SPAN, user="tom", conversation="c-2", expires_in_s=60)
    claims = TokenVerifier({"acme": [OutcomeKey("k1", SECRET.encode())]}).verify(token, now_s=1_790_000_000)
    assert (claims.trace_id, claims.span_id, claims.conversation_id) == (TRACE, SPAN, "c-2")
    assert (claims.rater, claims.expires_at) == (subject_of("pepper", "tom"), 1_790_000_060)


def test_no_token_is_no_failure_of_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key, a trace or a name there is none, and the app goes on; a short secret is an error at the start."""
    monkeypatch.setenv("NIGHTSCHOOL_STRICT", "0")
    assert client().outcome_token("thumb", trace_id=TRACE) is None
    acme = client(outcome_key=("k1", SECRET))
    assert acme.outcome_token("thumb") is None
    assert acme.outcome_token(trace_id=TRACE) is None
    assert Client("", "", api_key="", enabled=False).outcome_token("thumb", trace_id=TRACE) is None
    with pytest.raises(ConfigError, match="the secret of outcome key 'k1' has 5 bytes"):
        client(outcome_key=("k1", "short"))
    monkeypatch.setenv("NIGHTSCHOOL_STRICT", "1")
    with pytest.raises(ConfigError, match="no key signs browser tokens"):
        client().outcome_token("thumb", trace_id=TRACE)


def test_an_outcome_that_the_collector_rejects_is_counted(collector: Collector) -> None:
    """Each item of a batch has its own status; what was not stored is counted, and the rest was sent."""
    said = b'{"outcomes":[{"status":"accepted"},{"status":"conflict","error":"x"},{"status":"duplicate"}]}'
    collector.fail(Failure(202, body=said), path="/v1/outcomes")
    for _ in range(3):
        nightschool.outcome("thumb", True, response_id="r")
    assert nightschool.flush()
    stats = nightschool.stats().outcomes
    assert (stats.sent, stats.rejected) == (2, 1)
