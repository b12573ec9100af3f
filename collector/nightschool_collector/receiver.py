"""What every way into the collector shares: the limits, the threads that store, and the words for failures."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nightschool.errors import RecordError, StreamError
from nightschool_collector.counters import Counters
from nightschool_collector.request.admission import Admission, Traffic
from nightschool_collector.request.refusal import BAD_REQUEST, UNAVAILABLE, RefusedError, retry_after_s
from nightschool_collector.store.writer import RecordWriter

T = TypeVar("T")
# Threads wait for the disk or the brokers most of the time. Outcomes have their own, so that spans never stand before them.
_NUM_THREADS = {Traffic.SPANS: 32, Traffic.OUTCOMES: 8}
# A client of the official SDK gives a batch up after 10 s: storing what has waited longer only makes the others wait.
STALE_S = 8.0


class Receiver:
    """One for each process."""

    def __init__(
        self, writer: RecordWriter, admission: Admission, max_body_bytes: int, *, jitter: Callable[[], float] = random.random
    ) -> None:
        self.writer, self.admission, self.max_body_bytes = writer, admission, max_body_bytes
        self.draining = False
        """Set when the process was told to stop: it is not ready any more, and takes nothing new."""
        self._jitter = jitter
        self._threads = {
            traffic: ThreadPoolExecutor(number, thread_name_prefix=f"store-{traffic}") for traffic, number in _NUM_THREADS.items()
        }

    @property
    def counters(self) -> Counters:
        return self.writer.counters

    async def store(self, traffic: Traffic, work: Callable[[], T]) -> T:
        """Run `work` in a thread of the traffic; whatever keeps it from being done is a `RefusedError`."""
        came = time.monotonic()

        def timely() -> T:
            if time.monotonic() - came > STALE_S:
                raise RefusedError(UNAVAILABLE, "too much is waiting to be stored, try again", reason="pressure")
            return work()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads[traffic], timely)
        except RecordError as error:
            raise RefusedError(BAD_REQUEST, str(error)) from error
        except StreamError as error:
            raise RefusedError(UNAVAILABLE, str(error)) from error

    def check_open(self) -> None:
        if self.draining:
            raise RefusedError(UNAVAILABLE, "this collector is stopping, try again", reason="draining")

    def retry_after_s(self) -> int:
        """How long a client that was turned away with 503 should wait."""
        return retry_after_s(self._jitter())

    def close(self) -> None:
        """Wait for what is being stored."""
        for threads in self._threads.values():
            threads.shutdown()
