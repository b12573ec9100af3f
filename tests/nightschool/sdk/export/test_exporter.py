"""The export is bounded, never holds the app up, and loses nothing that it can still deliver."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from nightschool.sdk.client import Client
from nightschool.sdk.export.exporter import Stats
from nightschool.sdk.export.queue import MAX_BATCH_BYTES
from nightschool.testing import Collector, Failure


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def client(collector: Collector) -> Iterator[Client]:
    client = Client(collector.endpoint, "acme", api_key="key")
    yield client
    client.shutdown(0.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def record(client: Client, name: str, text: str = "x") -> None:
    with client.model_call(name, [{"role": "user", "content": text}]):
        pass


def models(collector: Collector) -> list[str]:
    return [span.attributes["gen_ai.request.model"] for span in collector.spans]


def settled(stats: Stats) -> tuple[int, int, int, int, int]:
    spans = stats.spans
    return spans.queued, spans.sent, spans.dropped, spans.rejected, spans.invalid


def test_what_was_recorded_before_a_flush_is_acknowledged_after_it(client: Client, collector: Collector) -> None:
    """`flush` returns True when every span and outcome put before it is acknowledged."""
    record(client, "a")
    client.outcome("thumb", True, trace_id="0" * 31 + "1")
    assert client.flush(10)
    assert models(collector) == ["a"]
    assert [outcome["name"] for outcome in collector.outcomes] == ["thumb"]
    assert settled(client.stats()) == (0, 1, 0, 0, 0)


def test_requests_carry_the_key_and_say_what_they_are(client: Client, collector: Collector) -> None:
    """Every request has the tenant's key as a bearer, is gzipped, and names its format."""
    record(client, "a")
    client.outcome("thumb", True, trace_id="0" * 31 + "1")
    client.flush(10)
    by_path = {request.path: request.headers for request in collector.requests}
    assert by_path["/v1/traces"]["content-type"] == "application/x-protobuf"
    assert by_path["/v1/outcomes"]["content-type"] == "application/json"
    assert all(headers["authorization"] == "Bearer key" for headers in by_path.values())
    assert all(headers["content-encoding"] == "gzip" for headers in by_path.values())


def test_overflow_drops_the_newest_spans_and_counts_them() -> None:
    """With the queue full, what is older keeps its place, what is newer is dropped, and each is counted once."""
    port = free_port()
    client = Client(f"http://127.0.0.1:{port}", "acme", api_key="key", max_queue_bytes=50_000)
    for number in range(20):
        record(client, f"m{number}", "x" * 10_000)
    queued, _, dropped, *_ = settled(client.stats())
    assert 0 < queued < 10
    assert queued + dropped == 20
    with Collector(port) as collector:
        assert client.flush(10)
        assert models(collector) == [f"m{number}" for number in range(queued)]
    assert client.shutdown(1)


def test_an_outcome_takes_the_place_of_spans() -> None:
    """An outcome is never dropped while there is a waiting span to drop in its place."""
    port = free_port()
    client = Client(f"http://127.0.0.1:{port}", "acme", api_key="key", max_queue_bytes=60_000)
    for number in range(20):
        record(client, f"m{number}", "x" * 10_000)
    for number in range(4):
        client.outcome("edit", final_text=f"{number}" * 8_000, trace_id="0" * 31 + "1")
    assert client.stats().outcomes.dropped == 0
    with Collector(port) as collector:
        assert client.flush(10)
        assert [outcome["edit"]["final_text"][0] for outcome in collector.outcomes] == ["0", "1", "2", "3"]
        assert len(collector.spans) == client.stats().spans.sent
    stats = client.stats().spans
    assert stats.sent + stats.dropped == 20
    client.shutdown(1)


def test_a_collector_that_was_down_gets_everything_once_it_is_up() -> None:
    """Spans and outcomes recorded while the collector is down arrive, once each, when it comes back."""
    port = free_port()
    client = Client(f"http://127.0.0.1:{port}", "acme", api_key="key")
    record(client, "early")
    client.outcome("thumb", True, trace_id="0" * 31 + "1")
    assert not client.flush(0.2)
    with Collector(port) as collector:
        record(client, "late")
        assert client.flush(10)
        assert models(collector) == ["early", "late"]
        assert len(collector.outcomes) == 1
    assert client.stats().retries >= 1
    client.shutdown(1)


def test_a_collector_that_restarts_gets_what_was_recorded_since() -> None:
    """A connection cut between two requests costs nothing."""
    with Collector() as first:
        client = Client(first.endpoint, "acme", api_key="key")
        record(client, "before")
        assert client.flush(10)
        port = int(first.endpoint.rpartition(":")[2])
    with Collector(port) as second:
        record(client, "after")
        assert client.flush(10)
        assert models(second) == ["after"]
        assert client.stats().retries == 0, "a connection that went stale is not a refusal"
    client.shutdown(1)


def test_retry_after_is_honoured(client: Client, collector: Collector) -> None:
    """After 503 with Retry-After the same batch is sent again, not before that time, even in a flush."""
    collector.fail(Failure(503, {"Retry-After": "1"}))
    record(client, "a")
    assert client.flush(10)
    first, second = [request for request in collector.requests if request.path == "/v1/traces"]
    assert (first.status, second.status) == (503, 200)
    assert second.at_monotonic_s - first.at_monotonic_s >= 1.0
    assert first.body == second.body
    assert client.stats().retries == 1


@pytest.mark.parametrize("status", [0, 408, 429, 502, 503, 504])
def test_a_passing_refusal_is_retried(client: Client, collector: Collector, status: int) -> None:
    """A hang-up, 408, 429, 502, 503 and 504 mean: send the same again."""
    collector.fail(Failure(status), Failure(status))
    record(client, "a")
    assert client.flush(20)
    assert models(collector) == ["a"]
    assert settled(client.stats()) == (0, 1, 0, 0, 0)


def test_the_apps_random_numbers_stay_its_own(client: Client, collector: Collector) -> None:
    """An app that seeded `random` draws the same numbers with the tracer as without, also after retries."""
    random.seed(7)
    before = random.getstate()
    collector.fail(Failure(503), Failure(0))
    record(client, "a")
    assert client.flush(20)
    assert client.stats().retries >= 1
    assert random.getstate() == before


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_final_refusal_is_counted_and_not_repeated(client: Client, collector: Collector, status: int) -> None:
    """After other statuses sending again cannot help: the batch counts as rejected, and the next one is sent."""
    collector.fail(Failure(status, body=b"no"))
    record(client, "a")
    assert client.flush(10)
    record(client, "b")
    assert client.flush(10)
    assert models(collector) == ["b"]
    assert settled(client.stats()) == (0, 1, 0, 1, 0)


def test_outcomes_pass_while_spans_are_refused(client: Client, collector: Collector) -> None:
    """Outcomes have a lane of their own: a collector that refuses spans still gets them."""
    collector.fail(Failure(503, {"Retry-After": "100"}))
    record(client, "a")
    assert not client.flush(0.2)
    client.outcome("thumb", True, trace_id="0" * 31 + "1")
    client.flush(0.2)
    assert collector.wait_for(lambda seen: any(request.path == "/v1/outcomes" for request in seen.requests))
    assert client.stats().spans.queued == 1


def test_partial_success_is_counted(client: Client, collector: Collector) -> None:
    """Spans that a 200 says were rejected count as rejected, not as sent."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 1
    collector.fail(Failure(200, body=answer.SerializeToString()))
    record(client, "a")
    record(client, "b")
    client.flush(10)
    assert settled(client.stats()) == (0, 1, 0, 1, 0)


def test_one_refused_outcome_does_not_take_others_along(client: Client, collector: Collector) -> None:
    """A batch of outcomes refused with 400 is sent again in halves, so that only the bad one is lost."""
    collector.fail(Failure(503), Failure(400), Failure(400), path="/v1/outcomes")
    client.outcome("first", True, trace_id="0" * 31 + "1")
    client.outcome("second", True, trace_id="0" * 31 + "1")
    assert client.flush(10)
    assert [outcome["name"] for outcome in collector.outcomes] == ["second"]
    outcomes = client.stats().outcomes
    assert (outcomes.sent, outcomes.rejected) == (1, 1)


def test_a_batch_too_large_for_the_collector_is_split(client: Client, collector: Collector) -> None:
    """A batch refused with 413 is sent again in halves."""
    collector.fail(Failure(503), Failure(413))
    for name in ("a", "b", "c"):
        record(client, name)
    assert client.flush(10)
    assert models(collector) == ["a", "b", "c"]


def test_batches_are_bounded_by_bytes(client: Client, collector: Collector) -> None:
    """No request holds more than 4 MiB, whatever the spans' sizes and alphabets; nothing is lost by it."""
    for number in range(6):
        record(client, f"m{number}", "ж" * 900_000)  # two bytes each: more than its length says
    assert client.flush(20)
    assert models(collector) == [f"m{number}" for number in range(6)]
    assert max(len(request.body) for request in collector.requests) <= MAX_BATCH_BYTES


def test_a_span_that_cannot_be_encoded_is_left_out_alone(client: Client, collector: Collector) -> None:
    """A name that is not Unicode text makes its own span invalid, and the batch goes out without it."""
    for name in ("a", "b\ud800", "c"):
        record(client, name)
    assert client.flush(10)
    assert models(collector) == ["a", "c"]
    assert settled(client.stats()) == (0, 2, 0, 0, 1)


def test_shutdown_gives_up_in_time_and_counts() -> None:
    """With nobody listening, shutdown returns False and what is left counts as dropped; later spans too."""
    client = Client(f"http://127.0.0.1:{free_port()}", "acme", api_key="key")
    record(client, "a")
    assert not client.shutdown(0.1)
    record(client, "b")
    assert client.shutdown(0.1), "nothing is left to do the second time"
    assert settled(client.stats()) == (0, 0, 2, 0, 0)


def test_a_collector_that_never_answers_does_not_hold_the_app() -> None:
    """With a collector that accepts and never answers, recording, flush and shutdown all return."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", "acme", api_key="key")
        record(client, "a")
        assert not client.flush(0.1)
        record(client, "b")
        assert not client.shutdown(0.1)
    assert client.stats().spans.dropped == 2


def test_many_threads_lose_nothing(client: Client, collector: Collector) -> None:
    """Spans put from many threads at once are all sent, once each."""
    threads = [
        threading.Thread(target=lambda part=part: [record(client, f"{part}-{number}") for number in range(50)])
        for part in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.flush(20)
    assert sorted(models(collector)) == sorted(f"{part}-{number}" for part in range(8) for number in range(50))


_FORKING = """
import os, sys, nightschool
nightschool.configure(sys.argv[1], "acme", api_key="key")
def record(name):
    with nightschool.model_call(name, []):
        pass
record("sent")
assert nightschool.flush(10)
record("parent")
if os.fork() == 0:
    record("child")
    os._exit(0 if nightschool.flush(10) and nightschool.stats().spans.sent == 1 else 1)
_, status = os.wait()
assert status == 0, status
assert nightschool.flush(10)
assert nightschool.stats().spans.sent == 2
"""


def run(script: str, endpoint: str) -> None:
    done = subprocess.run([sys.executable, "-c", script, endpoint], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_forked_child_sends_its_own_spans_only(collector: Collector) -> None:
    """After a fork each process has its own queue, thread and connection; nothing is sent twice or lost."""
    run(_FORKING, collector.endpoint)
    assert sorted(models(collector)) == ["child", "parent", "sent"]


_FORKING_IDS = """
import os, sys, nightschool
nightschool.configure(sys.argv[1], "acme", api_key="key")
def trace_id():
    with nightschool.request(task="triage") as req:
        return req.trace_id
trace_id()
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, trace_id().encode())
    os._exit(0)
os.wait()
assert os.read(reading, 64).decode() != trace_id()
"""


def test_a_forked_child_makes_ids_of_its_own(collector: Collector) -> None:
    """Workers forked from one process do not go on with the same random ids."""
    run(_FORKING_IDS, collector.endpoint)


_EXITING = """
import sys, nightschool
nightschool.configure(sys.argv[1], "acme", api_key="key")
with nightschool.model_call("last", []):
    pass
nightschool.outcome("thumb", True, trace_id="0" * 31 + "1")
"""


def test_an_app_that_just_ends_loses_nothing(collector: Collector) -> None:
    """What is queued when the interpreter exits is sent then."""
    run(_EXITING, collector.endpoint)
    assert models(collector) == ["last"]
    assert len(collector.outcomes) == 1


def test_an_app_ends_cleanly_when_nobody_listens() -> None:
    """Without a collector an app exits as if nightschool were not there."""
    run(_EXITING, f"http://127.0.0.1:{free_port()}")
