"""Server spans: what they record, and how they reach a collector."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from nightschool_serving.telemetry.queues import SpanQueues, size_of
from nightschool_serving.telemetry.recorder import Choice, Recording
from nightschool_serving.telemetry.sender import Telemetry
from nightschool_serving.telemetry.spans import ServedRequest, TraceParent, error_of, to_export_request, to_span

TRACE = "00-" + "a1" * 16 + "-" + "b2" * 8 + "-01"


def served(**changes: Any) -> ServedRequest:
    recording = Recording([[7, 8, 9]], {(0, 0): Choice([1, 2], [-0.5, -0.25], "stop")}, first_token_ns=1_500_000_000)
    fields: dict[str, Any] = {
        "tenant": "bank",
        "authorization": "Bearer bank-key",
        "operation": "chat",
        "alias": "nightschool",
        "model": "t-bank.0123",
        "release": "ab" * 32,
        "response_id": "chatcmpl-1",
        "started_ns": 1_000_000_000,
        "parent": None,
        "tokenizer": "cd" * 32,
        "captures_content": True,
        "sent": {"temperature": 0.5, "stop": "END"},
        "recording": recording,
        "ended_ns": 2_000_000_000,
        "status": 200,
    }
    return ServedRequest(**{**fields, **changes})


def plain(value: AnyValue) -> Any:
    if value.HasField("array_value"):
        return [plain(item) for item in value.array_value.values]
    return getattr(value, value.WhichOneof("value") or "string_value")


def attributes(request: ServedRequest) -> dict[str, Any]:
    return {entry.key: plain(entry.value) for entry in to_span(request).attributes}


def test_a_span_says_what_was_sampled_by_which_release() -> None:
    """Every attribute of an ordinary answer; what the client did not send is absent."""
    assert attributes(served()) == {
        "nightschool.side": "server",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "nightschool",
        "gen_ai.response.model": "t-bank.0123",
        "gen_ai.response.id": "chatcmpl-1",
        "nightschool.policy.version": "ab" * 32,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stop_sequences": ["END"],
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ["stop"],
        "nightschool.prompt.token_ids": [7, 8, 9],
        "nightschool.completion.token_ids": [1, 2],
        "nightschool.completion.logprobs": [-0.5, -0.25],
        "nightschool.tokenizer": "cd" * 32,
    }


def test_a_client_may_keep_content_out() -> None:
    """Without content the span has counts and no tokens, and says that content is off."""
    told = attributes(served(captures_content=False))
    assert told["nightschool.content.capture"] is False
    assert told["gen_ai.usage.output_tokens"] == 2
    assert not [name for name in told if "token_ids" in name or "logprobs" in name or name == "nightschool.tokenizer"]


def test_a_stream_has_its_time_to_the_first_chunk() -> None:
    """In seconds from the arrival of the request."""
    assert attributes(served(sent={"stream": True}))["gen_ai.response.time_to_first_chunk"] == 0.5


def test_parameters_without_a_name_of_their_own_are_on_the_span_as_json() -> None:
    """A night must sample as production did, and the server knows best what arrived; a schema is content."""
    sent = {"temperature": 0.5, "top_k": 3, "min_p": 0.1, "chat_template_kwargs": None}
    found = attributes(served(sent=sent))
    assert found["gen_ai.request.top_k"] == 3
    assert json.loads(found["nightschool.request.parameters"]) == {"min_p": 0.1, "chat_template_kwargs": None}
    assert "nightschool.request.parameters" not in attributes(served(sent=sent, captures_content=False))


def test_a_span_joins_the_clients_trace() -> None:
    """With a traceparent the span is its child, without one it starts a trace."""
    child, root = to_span(served(parent=TraceParent.parse(TRACE))), to_span(served())
    assert (child.trace_id.hex(), child.parent_span_id.hex()) == ("a1" * 16, "b2" * 8)
    assert (len(root.trace_id), root.parent_span_id) == (16, b"")
    assert len({child.span_id, root.span_id}) == 2


@pytest.mark.parametrize(
    "header",
    [None, "", "x", TRACE[:-1], TRACE.upper(), "ff" + TRACE[2:], TRACE.replace("a1", "00"), TRACE.replace("b2", "00")],
)
def test_what_is_no_traceparent_is_ignored(header: str | None) -> None:
    """Without a valid header the span is still sent."""
    assert TraceParent.parse(header) is None


def test_tokens_without_logprobs_are_left_out() -> None:
    """Unknown is not zero: lengths that do not match are not recorded as if they did."""
    recording = Recording([[7]], {(0, 0): Choice([1, 2], [-0.5], "stop")})
    found = attributes(served(recording=recording))
    assert "nightschool.completion.token_ids" not in found
    assert found["gen_ai.usage.output_tokens"] == 2


def test_several_answers_are_counted_but_not_mixed() -> None:
    """n=2 has usage and both finish reasons, and no token ids."""
    recording = Recording([[7]], {(0, 0): Choice([1], [-1.0], "stop"), (0, 1): Choice([2, 3], [-1.0, -1.0], "length")})
    found = attributes(served(recording=recording))
    assert (found["gen_ai.usage.output_tokens"], found["gen_ai.response.finish_reasons"]) == (3, ["stop", "length"])
    assert "nightschool.completion.token_ids" not in found


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, None),
        ({"status": 400, "recording": Recording()}, "400"),
        ({"status": 500}, "500"),
        ({"recording": Recording([[7]], {(0, 0): Choice([1], [-1.0], None)})}, "cancelled"),
        ({"status": None, "recording": Recording()}, "cancelled"),
        ({"recording": Recording([[7]], {(0, 0): Choice([1], [-1.0], "error")})}, "generation_error"),
        ({"recording": Recording([[7]], {(0, 0): Choice([1], [-1.0], "abort")})}, "abort"),
        ({"is_beam_search": True, "is_complete": True, "recording": Recording()}, None),
        ({"is_beam_search": True, "is_complete": False, "recording": Recording()}, "cancelled"),
        ({"is_beam_search": True, "is_complete": True, "status": 400, "recording": Recording()}, "400"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(changes: dict[str, Any], error: str | None) -> None:
    """Refused, failed and cancelled requests have the reason in their span."""
    request = served(**changes)
    assert error_of(request) == error
    found = attributes(request)
    assert found.get("error.type") == error
    assert ("nightschool.completion.token_ids" in found) is (changes == {})


def test_the_tenant_is_on_the_resource() -> None:
    """A collector without keys can read there which tenant's span it is."""
    export = to_export_request("bank", [served(), served()])
    resource = {entry.key: plain(entry.value) for entry in export.resource_spans[0].resource.attributes}
    assert resource == {"service.name": "nightschool-serving", "nightschool.tenant.id": "bank"}
    assert len(export.resource_spans[0].scope_spans[0].spans) == 2


def test_spans_go_under_the_key_of_their_client(span_sink: Any) -> None:
    """Each tenant's spans are sent with the key its client used, and never together with another's."""
    telemetry = Telemetry(span_sink.url)
    for tenant in ("bank", "telecom", "bank"):
        telemetry.record(served(tenant=tenant, authorization=f"Bearer {tenant}-key"))
    telemetry.close()
    assert sorted(authorization for authorization, _ in span_sink.spans()) == [
        "Bearer bank-key",
        "Bearer bank-key",
        "Bearer telecom-key",
    ]
    assert (telemetry.sent, telemetry.dropped) == (3, 0)


def test_a_collector_under_pressure_is_tried_again(span_sink: Any) -> None:
    """After 503 the span is sent again."""
    span_sink.statuses = [503, 429]
    telemetry = Telemetry(span_sink.url, retry_seconds=0.01)
    telemetry.record(served())
    while not span_sink.spans():
        threading.Event().wait(0.01)
    telemetry.close()
    assert (telemetry.sent, telemetry.dropped) == (1, 0)


def test_a_refused_span_is_dropped_and_counted(span_sink: Any) -> None:
    """After 401 it is dropped: another attempt would get the same answer."""
    span_sink.statuses = [401]
    telemetry = Telemetry(span_sink.url)
    telemetry.record(served())
    telemetry.close()
    assert (telemetry.sent, telemetry.dropped, span_sink.spans()) == (0, 1, [])


def test_a_missing_collector_blocks_nobody() -> None:
    """With no collector and a full queue, recording and closing return, and every lost span is counted."""
    telemetry = Telemetry("http://127.0.0.1:9", tenant_bytes=2 * size_of(served()), retry_seconds=60.0)
    for _ in range(1000):
        telemetry.record(served())
    dropped_while_full = telemetry.dropped
    telemetry.close()
    assert dropped_while_full == 1000 - 2
    assert (telemetry.sent, telemetry.dropped) == (0, 1000)


def test_a_tenant_whose_share_is_full_delays_no_other(span_sink: Any) -> None:
    """While the collector refuses one tenant's spans for now, those of another arrive; the first is tried again later."""
    span_sink.refused = {"Bearer bank-key"}
    telemetry = Telemetry(span_sink.url, retry_seconds=3600.0)
    for _ in range(3):
        telemetry.record(served())
    wait_until(lambda: span_sink.refusals > 0)
    telemetry.record(served(tenant="telecom", authorization="Bearer telecom-key"))
    wait_until(lambda: len(span_sink.spans()) == 1)
    span_sink.refused = set()
    telemetry.close()
    assert [key for key, _ in span_sink.spans()] == ["Bearer telecom-key"] + ["Bearer bank-key"] * 3
    assert (telemetry.sent, telemetry.dropped) == (4, 0)


def test_the_queues_are_bounded_in_bytes_for_each_tenant_and_in_all() -> None:
    """A tenant's long answers fill its own share; many tenants together fill no more than the whole."""
    long = Recording([[7] * 50_000], {(0, 0): Choice([1] * 50_000, [-0.5] * 50_000, "stop")})
    queues = SpanQueues(tenant_bytes=size_of(served(recording=long)), total_bytes=size_of(served(recording=long)) + 10_000)
    assert queues.put(served(recording=long), 0.0) is None
    assert "of tenant bank" in str(queues.put(served(), 0.0))
    others = [queues.put(served(tenant=f"t{number}"), 0.0) for number in range(20)]
    assert others[0] is None
    assert "bytes are already waiting" in str(others[-1])
    assert size_of(served(sent={"stop": ["x" * 1000, "y" * 1000]})) - size_of(served(sent={})) == 2000
    assert size_of(served(sent={"form": {"abc": ["de", {"f": 1}]}})) - size_of(served(sent={})) == 6
    while (queue := queues.first()) is not None:
        queues.remove(queue, len(queues.head(queue, 128)))
    assert (len(queues), queues.put(served(recording=long), 0.0)) == (0, None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
