"""What leaves an app's process: nothing that the rules find, by default."""

from __future__ import annotations

import json
from typing import Any

import nightschool
from nightschool import semconv as names
from nightschool.keys import hash_key, subject_of
from nightschool.redaction import Rules
from nightschool.testing import Collector, capture

MAIL = "anna@example.com"


def work(user: str = "mia") -> None:
    with nightschool.request(task="reply", user=user) as request:
        with nightschool.model_call("m", [{"role": "user", "content": f"write to {MAIL}"}]) as call:
            call.answer(f"Dear {MAIL}, ...", response_id="r1")
        nightschool.outcome("reply", final_text=f"Hello {MAIL}!", comment=f"wrote to {MAIL.upper()}", trace_id=request.trace_id)
    assert nightschool.flush()


def everything_sent(collector: Collector) -> bytes:
    return b"".join(request.body for request in collector.requests)


def content_of(collector: Collector) -> dict[str, Any]:
    (call,) = (span for span in collector.spans if names.GEN_AI_INPUT_MESSAGES in (span.attributes or {}))
    return dict(call.attributes)


def test_nothing_that_is_found_leaves_the_process() -> None:
    """Prompt, answer, correction and comment have the same pseudonym, and the address is in no byte that was sent."""
    with capture() as collector:
        work()
    assert MAIL.encode() not in everything_sent(collector).lower()
    attributes, (outcome,) = content_of(collector), collector.outcomes
    pseudonym = json.loads(attributes[names.GEN_AI_INPUT_MESSAGES])[0]["parts"][0]["content"].removeprefix("write to ")
    assert pseudonym.startswith("<EMAIL_")
    assert pseudonym in attributes[names.GEN_AI_OUTPUT_MESSAGES]
    assert outcome["edit"] == {"final_text": f"Hello {pseudonym}!"} and outcome["comment"] == f"wrote to {pseudonym}"
    assert json.loads(attributes[names.REDACTION_COUNTS]) == {"email": 2}


def test_the_pseudonyms_key_is_what_the_collector_can_know() -> None:
    """The SHA-256 of the API key, as nightschool.toml stores it, or the subject key that its file holds."""
    with capture() as collector:
        work()
    assert content_of(collector)[names.SUBJECT] == subject_of(hash_key("ns-test-key"), "mia")
    with capture(subject_key="long-lived") as collector:
        work()
    assert content_of(collector)[names.SUBJECT] == subject_of("long-lived", "mia")


def test_an_app_may_choose_its_rules_or_none() -> None:
    """`redaction=Rules(...)` looks for other things, `redaction=False` for nothing."""
    with capture(redaction=Rules(kinds=["ip"])) as collector:
        work()
    assert MAIL in content_of(collector)[names.GEN_AI_INPUT_MESSAGES]
    with capture(redaction=False) as collector:
        work()
    assert names.REDACTION_VERSION not in content_of(collector)
    assert collector.outcomes[0]["edit"] == {"final_text": f"Hello {MAIL}!"}
