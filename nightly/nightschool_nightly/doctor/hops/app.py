"""Hops of the app's side: the marked request is sent, acknowledged, and whole in the stream."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping

from nightschool import semconv as names
from nightschool.sdk.client import Client, is_disabled
from nightschool.sdk.content_capture import CAPTURE_VARIABLE
from nightschool_nightly.dialects.call import context_of
from nightschool_nightly.dialects.messages import read_messages
from nightschool_nightly.doctor.ask import ask
from nightschool_nightly.doctor.findings import BrokenHopError, Passed
from nightschool_nightly.doctor.hops.shared import check_tenant, missing_of, post_nothing, reply_text
from nightschool_nightly.doctor.visit import ANSWER_TIMEOUT_S, CONVERSATION, FLUSH_TIMEOUT_S, QUESTION, USER, Visit

_MAX_TOKENS = 8  # enough to see that serving answers
_SEND = {"Content-Type": "application/json"}


def send_marked_request(visit: Visit) -> Passed:
    """Record and send the marked request, as an app does."""
    if is_disabled():
        raise BrokenHopError(
            "NIGHTSCHOOL_DISABLED is set: an app in this environment records nothing", "unset NIGHTSCHOOL_DISABLED"
        )
    client = Client(visit.collector, visit.tenant, api_key=visit.key, service_name="nightschool-doctor")
    visit.closing.callback(client.shutdown, 1.0)
    messages = [{"role": "user", "content": QUESTION}]
    visit.sent_ms = time.time_ns() // 1_000_000
    with client.request(task=names.DOCTOR_TASK, user=USER, conversation=CONVERSATION) as request:
        if request.trace_id is None:
            raise BrokenHopError("the tracer started no trace", "run the app with NIGHTSCHOOL_STRICT=1 and read what it raises")
        visit.client, visit.trace_id = client, request.trace_id
        with client.model_call("nightschool", messages, provider="vllm", max_tokens=_MAX_TOKENS) as call:
            _ask_serving(visit, messages, call.headers)
            body = visit.answer.json()
            if (choice := visit.choice()) is not None and isinstance(body, dict):
                message = choice.get("message")
                visit.answer_text = str(message.get("content") or "") if isinstance(message, dict) else ""
                visit.response_id = body["id"] if isinstance(body.get("id"), str) else None
                call.respond(body)
            else:  # the hops that do not need serving can still be checked
                visit.answer_text = "(serving did not answer)"
                call.answer(visit.answer_text)
    return Passed(f"trace {visit.trace_id}")


def _ask_serving(visit: Visit, messages: list[dict[str, str]], headers: Mapping[str, str]) -> None:
    body = json.dumps({"model": "nightschool", "messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0}).encode()
    sent = {**_SEND, "Authorization": f"Bearer {visit.key}", **headers}
    started = time.time_ns()
    visit.answer = ask("POST", visit.serving, "/v1/chat/completions", body=body, headers=sent, timeout_s=ANSWER_TIMEOUT_S)
    visit.asked_ns = (started, time.time_ns())


def check_acknowledgement(visit: Visit) -> Passed:
    """The collector acknowledges the spans of the marked request in time."""
    in_time, spans = visit.client.flush(FLUSH_TIMEOUT_S), visit.client.stats().spans
    visit.acknowledged_ms = time.time_ns() // 1_000_000
    if lost := spans.rejected + spans.dropped + spans.invalid:
        raise BrokenHopError(
            f"{lost} spans were refused for good ({spans})",
            f"POST {visit.collector}/v1/traces must reach the collector, large bodies too; its log and /metrics say what it refused",
        )
    if not in_time or not spans.sent:
        now = reply_text(post_nothing(visit, visit.key))
        raise BrokenHopError(
            f"no acknowledgement within {FLUSH_TIMEOUT_S:.0f} s ({spans}, {visit.client.stats().retries} retries);"
            f" an empty request is answered {now}",
            "it asks to try again: collector or proxy is overloaded, or the stream cannot be reached; look at their logs",
        )
    return Passed(f"{spans.sent} spans are durable")


def check_record(visit: Visit) -> Passed:
    """The app's span comes into the configured stream in time, under the tenant."""
    there = visit.follower.wait(visit.marks, lambda found: bool(visit.calls("app", found)), timeout_s=visit.options.wait_s)
    if not there:
        raise BrokenHopError(
            f"the spans were acknowledged but are not in {visit.config.stream.url}",
            "the collector writes to another stream: start it with this nightschool.toml",
        )
    record, _ = visit.calls("app")[0]
    check_tenant(visit, [record])
    whose = (
        f"of tenant {visit.tenant}"
        if names.HEADER_TENANT in record.headers
        else "without our header: its resource names the tenant"
    )
    return Passed(f"{record.topic} partition {record.partition}, offset {record.offset}, {whose}")


def check_content(visit: Visit) -> Passed:
    """The app's span holds everything that was sent, as it was sent."""
    _, row = visit.calls("app")[0]
    messages, answers = context_of(row.attributes), read_messages(row.attributes.get(names.GEN_AI_OUTPUT_MESSAGES))
    arrived = {
        "messages": bool(messages) and messages is not None and messages[-1].text == QUESTION,
        "answer": bool(answers) and answers is not None and answers[0].text == visit.answer_text,
        "task": row.task == names.DOCTOR_TASK,
        "user": row.subject is not None and row.subject != USER,
        "conversation": row.conversation is not None,
    }
    if missing := missing_of(arrived):
        if not visit.client.captures_content(names.DOCTOR_TASK):
            value = os.environ.get(CAPTURE_VARIABLE)
            fix = f"{CAPTURE_VARIABLE} is {value} here: unset it, or let the app record texts with capture_content=True"
        elif row.attributes.get(names.REDACTION_VERSION):
            fix = "redaction changed or dropped it: look at the [privacy] settings"
        else:
            fix = "something between app and stream drops attributes; content capture must be on for the task"
        raise BrokenHopError(f"not as sent: {missing}", fix, arrived)
    return Passed("everything is as it was sent; the user is a pseudonym", arrived)
