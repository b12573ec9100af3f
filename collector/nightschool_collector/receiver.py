"""How a request is taken in, the same for HTTP, gRPC and pages: key, budget, body, and a thread that stores it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nightschool.errors import RecordError, StreamError
from nightschool.keys import KeyRing
from nightschool_collector.counters import NOBODY, Counters
from nightschool_collector.request.admission import Admission, Hold, Traffic
from nightschool_collector.request.compression import decompress
from nightschool_collector.request.incoming import Incoming
from nightschool_collector.request.refusal import BAD_REQUEST, UNAUTHORIZED, UNAVAILABLE, RefusedError, retry_after_s
from nightschool_collector.request.turns import Work

T = TypeVar("T")
# A thread waits for the disk or the brokers most of the time. Outcomes have threads of their own, so that they never
# wait behind spans.
_NUM_THREADS = {Traffic.SPANS: 32, Traffic.OUTCOMES: 8}
# A client of the official SDK gives a batch up after 10 s: storing what has waited longer only makes others wait.
STALE_S = 8.0


class Receiver:
    """Takes requests in; one for each process."""

    def __init__(
        self,
        keys: KeyRing,
        counters: Counters,
        admission: Admission,
        max_body_bytes: int,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter`, in [0, 1), spreads the time after which refused clients try again."""
        self.counters, self.admission, self.max_body_bytes = counters, admission, max_body_bytes
        self.draining = False
        """True after the process was told to stop: it is not ready any more, and accepts nothing new."""
        self._keys, self._jitter = keys, jitter
        self._threads = {
            traffic: ThreadPoolExecutor(number, thread_name_prefix=f"store-{traffic}") for traffic, number in _NUM_THREADS.items()
        }

    async def receive(self, request: Incoming, store: Callable[[str, bytes, Hold], T]) -> T:
        """Take `request` in and return what `store` makes of it; a `RefusedError` says what to answer instead.

        The cheap checks come first, so that nothing is read of a request that is refused: whose key it is, whether the
        process still accepts requests, whether the budget has room. Then the body is read. Decompressing it and `store`
        (given the tenant, the decompressed body, and a function that reserves more bytes) run in a thread. Refusals are
        counted.
        """
        tenant = NOBODY
        try:
            if request.needs_key:
                tenant = self._tenant_of(request.authorization)
            self.check_open()
            request.check()
            expected = request.expected_bytes()
            with self.admission.reserve(request.traffic, tenant, expected, address=request.address) as reservation:
                body = await request.read(reservation.hold)

                with Work(len(body)) as turn:

                    def work() -> T:
                        with turn.in_this_thread():
                            hold, count = reservation.hold, request.count()
                            raw = decompress(body, request.encoding(body), limit=request.limit, hold=hold, count=count)
                            return store(tenant, raw, reservation.hold)

                    return await self.in_thread(request.traffic, work)
        except RefusedError as error:
            self.counters.refused(tenant, request.signal, error.reason)
            if error.status == UNAVAILABLE and error.retry_after_s is None:
                error.retry_after_s = retry_after_s(self._jitter())
            raise

    async def in_thread(self, traffic: Traffic, work: Callable[[], T]) -> T:
        """Run `work` in a thread of `traffic`; a bad record and a stream that fails become a `RefusedError`."""
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
        """`RefusedError` (503) when the process was told to stop."""
        if self.draining:
            raise RefusedError(UNAVAILABLE, "this collector is stopping, try again", reason="draining")

    def close(self) -> None:
        """Return when everything that is being stored is stored."""
        for threads in self._threads.values():
            threads.shutdown()

    def _tenant_of(self, authorization: str | None) -> str:
        tenant = self._keys.tenant_of(authorization)
        if tenant is None:
            message = "no tenant has this key; send 'Authorization: Bearer KEY' with a key of [tenants.NAME] key_sha256"
            raise RefusedError(UNAUTHORIZED, message, headers={"www-authenticate": "Bearer"})
        return tenant
