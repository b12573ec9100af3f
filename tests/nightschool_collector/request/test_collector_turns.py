"""Large requests are worked on one after the other; small ones never wait for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

from nightschool_collector.request.turns import LARGE_BYTES, in_turn


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
