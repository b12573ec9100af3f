"""Large requests are worked on one after the other, and let small ones pass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool_collector.request import otlp_json, turns
from nightschool_collector.request.turns import LARGE_BYTES, STEP_ITEMS, Work, give_way, in_turn


def test_large_ones_take_turns_and_small_ones_pass() -> None:
    """While a large request is worked on, another large one waits and a small one does not."""
    done: list[str] = []
    large_is_in = Event()

    def work(name: str, num_bytes: int) -> None:
        with in_turn(num_bytes):
            done.append(name)

    with ThreadPoolExecutor(2) as pool:
        with in_turn(LARGE_BYTES + 1), in_turn(LARGE_BYTES + 1):  # a thread that has its turn keeps it

            def second() -> None:
                large_is_in.set()
                work("large", LARGE_BYTES + 1)

            waiting = pool.submit(second)
            large_is_in.wait()
            pool.submit(work, "small", LARGE_BYTES).result()
            done.append("first")
        waiting.result()
    assert done == ["small", "first", "large"]


def test_a_large_one_lets_small_ones_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps it waits until no small one is being worked on."""
    monkeypatch.setattr(turns, "_FIRST_WAIT_S", 60)
    monkeypatch.setattr(turns, "_LONGEST_WAIT_S", 60)
    passed = Event()

    def large() -> None:
        with Work(LARGE_BYTES + 1).in_this_thread():
            give_way()
            passed.set()

    with ThreadPoolExecutor(1) as pool:
        with Work(LARGE_BYTES):
            with Work(1):
                waiting = pool.submit(large)
            assert not passed.wait(0.05)
        waiting.result(timeout=60)


def test_a_large_one_does_not_wait_for_ever() -> None:
    """However many small ones there are, a large one goes on."""
    with Work(1), Work(LARGE_BYTES + 1) as work, work.in_this_thread():
        for _ in range(10):
            give_way()


def test_what_turns_out_to_be_large_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that came with few bytes and holds many is small until its first step is done."""
    monkeypatch.setattr(turns, "_FIRST_WAIT_S", 60)
    monkeypatch.setattr(turns, "_LONGEST_WAIT_S", 60)
    with Work(100) as work, work.in_this_thread():
        give_way()
        give_way()


def test_small_ones_pass_between_the_spans_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON becomes messages in Python, which takes seconds where it has many spans."""
    steps: list[None] = []
    monkeypatch.setattr(turns, "give_way", lambda: steps.append(None))
    spans = ",".join('{"name": "n"}' for _ in range(3 * STEP_ITEMS))
    body = f'{{"resourceSpans": [{{"scopeSpans": [{{"spans": [{spans}]}}]}}]}}'.encode()
    request = otlp_json.parse_json(body, ExportTraceServiceRequest())
    assert len(request.resource_spans[0].scope_spans[0].spans) == 3 * STEP_ITEMS
    assert len(steps) >= 3
