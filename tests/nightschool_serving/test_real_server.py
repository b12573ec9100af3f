"""A real `nightschool serve` on SmolLM2-135M: two tenants, releases published while it runs.

The tests share one server and the releases that earlier tests have published; each publishes what it needs. The last
test stops the server.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import signal
import urllib.request
from typing import Any

import openai
import pytest

import nightschool
from nightschool.registry.release import WEIGHTS
from nightschool.sdk.openai.instrument import uninstrument
from nightschool.testing import capture
from nightschool_serving.adapter import adapter_name

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPT = "My card was charged twice and nobody answers the phone. What can I do?"
LONG = {"max_tokens": 24}


@pytest.fixture(scope="module")
def released(server: Any) -> dict[str, str]:
    """Both tenants on an adapter of their own; the two releases."""
    return {tenant: server.publish_and_wait(tenant, seed) for seed, tenant in enumerate(server.tenants, start=1)}


def text(answer: Any) -> str:
    assert answer.status == 200, answer.text
    return str(answer.json["choices"][0]["message"]["content"])


def sampled(server: Any, answer: Any) -> tuple[list[int], list[float]]:
    """Token ids and log-probabilities that the span of `answer` recorded."""
    found = span_of(server, answer.json["id"])
    return found["nightschool.completion.token_ids"], found["nightschool.completion.logprobs"]


def span_of(server: Any, response_id: str) -> dict[str, Any]:
    """Attributes of the span with this response id, once it has arrived, and the key it was sent with."""
    found: list[dict[str, Any]] = []

    def arrived() -> bool:
        for authorization, span in server.sink.spans():
            attributes = {entry.key: plain(entry.value) for entry in span.attributes}
            if attributes["gen_ai.response.id"] == response_id:
                found.append({**attributes, "authorization": authorization, "span": span})
        return bool(found)

    server.wait_until(arrived, f"the span of {response_id}")
    assert len(found) == 1
    return found[0]


def plain(value: Any) -> Any:
    if value.HasField("array_value"):
        return [plain(item) for item in value.array_value.values]
    return getattr(value, value.WhichOneof("value") or "string_value")


def test_a_tenant_without_a_release_gets_the_base_model(server: Any) -> None:
    """Before anything was published, `nightschool` and `base` are the same, and the header says so."""
    server.tenants["fresh"] = server.tenants["bank"]
    answers = [server.chat("fresh", model, PROMPT) for model in ("nightschool", "base")]
    del server.tenants["fresh"]
    assert [answer.headers["x-nightschool-release"] for answer in answers] == ["base", "base"]
    assert text(answers[0]) == text(answers[1])


def test_a_release_is_served_without_a_restart(server: Any, released: dict[str, str]) -> None:
    """A published release answers within one poll: header, model name and answer change."""
    answer, base = server.chat("bank", "nightschool", PROMPT, **LONG), server.chat("bank", "base", PROMPT, **LONG)
    assert answer.headers["x-nightschool-release"] == released["bank"]
    assert answer.json["model"] == adapter_name("bank", released["bank"])
    assert base.headers["x-nightschool-release"] == "base"
    assert text(answer) != text(base)
    assert server.process.poll() is None


def test_a_key_gets_its_own_tenants_release_and_no_other(server: Any, released: dict[str, str]) -> None:
    """Whatever key and alias: only the key's own release answers, and no adapter name is reachable from outside."""
    for key, owner in itertools.product(server.tenants, server.tenants):
        alias = server.chat(key, "nightschool", PROMPT)
        assert alias.headers["x-nightschool-release"] == released[key]
        guessed = server.chat(key, adapter_name(owner, released[owner]), PROMPT)
        assert guessed.status == 404
        assert "allowed are 'nightschool' and 'base'" in guessed.json["error"]["message"]
    assert text(server.chat("bank", "nightschool", PROMPT)) != text(server.chat("telecom", "nightschool", PROMPT))


@pytest.mark.parametrize("model", ["t-bank", "gpt-4o", "", None, "/etc/passwd", "../base"])
def test_an_unknown_model_is_404(server: Any, model: str | None) -> None:
    """What is not an alias, also if absent or empty, is refused with what is allowed."""
    answer = server.chat("bank", model, PROMPT)
    assert answer.status == 404
    assert answer.json["error"]["param"] == "model"


def test_the_list_of_models_shows_aliases_only(server: Any, released: dict[str, str]) -> None:
    """No adapter names, no paths."""
    answer = server.call("GET", "/v1/models", tenant="bank")
    assert [model["id"] for model in answer.json["data"]] == ["nightschool", "base"]
    assert "t-" not in answer.text
    assert "/" not in answer.text


def test_every_other_route_of_vllm_is_gone(server: Any) -> None:
    """What vLLM mounts itself is 404 with a key, and 401 comes before anything else without one."""
    for method, path in (
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/adapters"),
        ("POST", "/invocations"),
        ("GET", "/ping"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/chat/completions/render"),
        ("POST", "/tokenize"),
        ("GET", "/metrics"),
        ("GET", "/version"),
    ):
        assert server.call(method, path, {} if method == "POST" else None, tenant="bank").status == 404, path
    assert server.call("POST", "/v1/chat/completions", {}).status == 401


def test_answers_in_one_batch_are_those_given_alone(server: Any, released: dict[str, str]) -> None:
    """Base, bank and telecom requests in one batch: each greedy answer is the one that it gets alone."""
    routes = [("bank", "base"), ("bank", "nightschool"), ("telecom", "nightschool"), ("telecom", "base")]
    alone = {route: text(server.chat(*route, PROMPT, **LONG)) for route in routes}
    # The base answers must differ from the adapters', or the test could not see a leak.
    assert len(set(alone.values())) == 3
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = [(route, pool.submit(server.chat, *route, PROMPT, **LONG)) for _ in range(3) for route in routes]
    for route, answer in together:
        assert text(answer.result()) == alone[route], route


def test_a_span_tells_what_was_sampled(server: Any, released: dict[str, str]) -> None:
    """Ids and log-probabilities of every token, with the client's own key, release and response id."""
    answer = server.chat("telecom", "nightschool", PROMPT, temperature=0.7, seed=3)
    span, usage = span_of(server, answer.json["id"]), answer.json["usage"]
    assert len(span["nightschool.prompt.token_ids"]) == usage["prompt_tokens"] == span["gen_ai.usage.input_tokens"]
    assert len(span["nightschool.completion.token_ids"]) == usage["completion_tokens"] == span["gen_ai.usage.output_tokens"]
    assert len(span["nightschool.completion.logprobs"]) == usage["completion_tokens"]
    assert all(logprob <= 0 for logprob in span["nightschool.completion.logprobs"])
    assert span["nightschool.policy.version"] == released["telecom"]
    assert span["gen_ai.response.finish_reasons"] == [answer.json["choices"][0]["finish_reason"]]
    assert (span["gen_ai.request.temperature"], span["gen_ai.request.seed"]) == (0.7, 3)
    assert span["authorization"] == f"Bearer {server.tenants['telecom'].key}"
    assert answer.json["choices"][0]["logprobs"] is None


def test_recorded_logprobs_are_those_of_the_sampling_distribution(server: Any) -> None:
    """They are computed after the temperature: what `logprobs` shows the client is what was recorded."""
    answer = server.chat("bank", "base", PROMPT, temperature=0.5, seed=1, logprobs=True)
    told = [entry["logprob"] for entry in answer.json["choices"][0]["logprobs"]["content"]]
    cool = sampled(server, answer)[1]
    assert cool == pytest.approx(told)
    raw = server.chat("bank", "base", PROMPT, temperature=1.0, seed=1, logprobs=True)
    assert sampled(server, raw)[1][0] != pytest.approx(cool[0])


def test_recording_does_not_change_the_answer(server: Any) -> None:
    """With and without `logprobs` asked for, the text is the same, and only the asking answer has them."""
    plain_answer, asking = server.chat("bank", "base", PROMPT), server.chat("bank", "base", PROMPT, logprobs=True)
    assert text(plain_answer) == text(asking)
    assert set(plain_answer.json) == set(asking.json)
    assert plain_answer.json["choices"][0]["logprobs"] is None
    assert len(asking.json["choices"][0]["logprobs"]["content"]) == asking.json["usage"]["completion_tokens"]


def test_a_stream_is_recorded_and_joins_the_clients_trace(server: Any, released: dict[str, str]) -> None:
    """SSE chunks add up to the whole answer; the span has all tokens, the time to the first, and the client's trace."""
    trace = {"traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01"}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = server.chat("bank", "nightschool", PROMPT, headers=trace, **options)
    assert answer.headers["x-nightschool-release"] == released["bank"]
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    streamed = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert streamed == text(server.chat("bank", "nightschool", PROMPT))
    assert all(choice.get("logprobs") is None for chunk in chunks for choice in chunk["choices"])
    span = span_of(server, chunks[0]["id"])
    assert len(span["nightschool.completion.token_ids"]) == chunks[-1]["usage"]["completion_tokens"]
    assert span["gen_ai.response.time_to_first_chunk"] > 0
    assert (span["span"].trace_id.hex(), span["span"].parent_span_id.hex()) == ("a1" * 16, "b2" * 8)


def test_app_and_server_span_are_one_trace(server: Any, released: dict[str, str]) -> None:
    """The SDK calls the real server: the server's span is the child of the app's, with the same response id."""
    with capture() as collector, openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.tenants["bank"].key) as client:
        nightschool.instrument_openai()
        try:
            with nightschool.request(task="triage") as request:
                client.chat.completions.create(model="nightschool", messages=[{"role": "user", "content": PROMPT}], max_tokens=4)
            assert nightschool.flush()
        finally:
            uninstrument()
        (app,) = [span for span in collector.spans if span.name.startswith("chat")]
    found = span_of(server, app.attributes["gen_ai.response.id"])
    assert found["span"].trace_id.hex() == app.trace_id == request.trace_id
    assert found["span"].parent_span_id.hex() == app.span_id
    assert len(found["nightschool.tokenizer"]) == 64


def test_a_client_may_keep_token_ids_out(server: Any) -> None:
    """Asked by header not to record content, the server counts tokens and keeps none."""
    answer = server.chat("bank", "base", PROMPT, headers={"x-nightschool-capture": "off"})
    span = span_of(server, answer.json["id"])
    assert span["nightschool.content.capture"] is False
    assert span["gen_ai.usage.output_tokens"] == answer.json["usage"]["completion_tokens"]
    assert not [name for name in span if "token_ids" in name or "logprobs" in name]


def test_plain_completions_work_the_same(server: Any, released: dict[str, str]) -> None:
    """/v1/completions is routed, labelled and recorded too."""
    body = {"model": "nightschool", "prompt": "Once upon a time", "max_tokens": 5, "temperature": 0}
    answer = server.call("POST", "/v1/completions", body, tenant="bank")
    assert (answer.status, answer.headers["x-nightschool-release"]) == (200, released["bank"])
    span = span_of(server, answer.json["id"])
    assert span["gen_ai.operation.name"] == "text_completion"
    assert len(span["nightschool.completion.token_ids"]) == 5


def test_what_a_client_must_not_choose_has_no_effect(server: Any) -> None:
    """Forged ids, priority, rank, session and cache salt change nothing, and the id is one of ours."""
    headers = {"X_Request_Id": "stolen", "X_Vllm_Priority": "-5", "X_Session_ID": "s", "X_data_parallel_rank": "7"}
    body = {"request_id": "stolen", "cache_salt": "theirs", "priority": -5, "session_id": "s", "vllm_xargs": {"x": 1}}
    spoofed = server.chat("bank", "base", PROMPT, headers=headers, **body)
    assert text(spoofed) == text(server.chat("bank", "base", PROMPT))
    assert "stolen" not in spoofed.text


def test_a_refused_request_is_a_span_with_an_error(server: Any) -> None:
    """What vLLM itself refuses is recorded as an error of that tenant, without tokens."""
    before = len(server.sink.spans())
    assert server.chat("bank", "base", PROMPT, max_tokens=-1).status == 400
    server.wait_until(lambda: len(server.sink.spans()) > before, "the span of the refused request")
    attributes = {entry.key: plain(entry.value) for entry in server.sink.spans()[-1][1].attributes}
    assert attributes["error.type"] == "400"
    assert "nightschool.completion.token_ids" not in attributes


def test_a_damaged_release_is_refused_while_the_old_one_serves(server: Any, released: dict[str, str]) -> None:
    """With one flipped byte it is never loaded; the reason is shown, and the old release keeps answering."""
    before = text(server.chat("bank", "nightschool", PROMPT))
    registry = server.registry
    pointer = registry.pointer("bank")
    bad = server.publish("bank", 11, pointed=False)
    weights = registry.release_folder("bank", bad) / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    registry.move_pointer("bank", pointer, stable=bad)
    server.wait_until(lambda: server.releases("bank")["rejected"] is not None, "the rejection")
    shown = server.releases("bank")
    assert shown["release"] == released["bank"]
    assert shown["rejected"]["release"] == bad
    assert "SHA-256" in shown["rejected"]["reason"]
    answer = server.chat("bank", "nightschool", PROMPT)
    assert (text(answer), answer.headers["x-nightschool-release"]) == (before, released["bank"])
    assert server.releases("telecom")["rejected"] is None


def test_streams_survive_a_swap_on_the_release_they_began_with(server: Any) -> None:
    """While two tenants stream, one gets a new release: every stream is complete and names one model."""
    options = {"stream": True, "max_tokens": 60, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = [pool.submit(server.chat, tenant, "nightschool", PROMPT, **options) for tenant in ("bank", "telecom") * 4]
        newer = server.publish_and_wait("telecom", 21)
        answers = [future.result() for future in running]
    for answer in answers:
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        chunks = [json.loads(event) for event in events[:-1]]
        assert (answer.status, events[-1]) == (200, "[DONE]")
        assert len({chunk["model"] for chunk in chunks}) == 1
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert server.chat("telecom", "nightschool", PROMPT).headers["x-nightschool-release"] == newer


def test_a_rollback_answers_as_before(server: Any, released: dict[str, str]) -> None:
    """Pointing back gives exactly the earlier release's answers: no stale cache, no other weights."""
    registry = server.registry
    registry.move_pointer("telecom", registry.pointer("telecom"), stable=released["telecom"])
    server.wait_until(lambda: server.releases("telecom")["release"] == released["telecom"], "the rollback")
    first = text(server.chat("telecom", "nightschool", PROMPT, **LONG))
    other = server.publish_and_wait("telecom", 22)
    assert text(server.chat("telecom", "nightschool", PROMPT, **LONG)) != first
    registry.move_pointer("telecom", registry.pointer("telecom"), stable=released["telecom"])
    server.wait_until(lambda: server.releases("telecom")["previous"] == other, "the second rollback")
    assert text(server.chat("telecom", "nightschool", PROMPT, **LONG)) == first


def test_a_server_told_to_stop_finishes_what_it_is_answering(server: Any) -> None:
    """SIGTERM during a stream: the stream is completed, its span arrives, and the process ends with status 0."""
    length = 300
    message = {"role": "user", "content": "Tell me a long story."}
    body = {"model": "base", "messages": [message], "stream": True, "max_tokens": length, "ignore_eos": True}
    request = server.request("POST", "/v1/chat/completions", body, tenant="bank")
    with urllib.request.urlopen(request, timeout=120) as stream:
        lines = [stream.readline()]
        server.process.send_signal(signal.SIGTERM)
        lines += stream.readlines()
    assert server.process.wait(60) == 0
    assert [line for line in lines if line.strip()][-1].strip() == b"data: [DONE]"
    span = span_of(server, json.loads(lines[0].removeprefix(b"data: "))["id"])
    assert len(span["nightschool.completion.token_ids"]) == length
