"""A lane: the queue of one kind of record, spans or outcomes, and the counts of what became of them.

There is no lock and no thread in here: `nightschool.sdk.export.exporter` holds one lock around every call.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_BATCH_BYTES = 4 << 20
"""Of one request before compression: far below what a collector takes by default, so that a retry repeats little."""
_NUM_WRAPPING_BYTES = 16 << 10
"""Kept free for what is around the elements of a request: commas between outcomes, the resource before spans."""
_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to ask for a gzip header
LINGER_S = 0.5
"""How long the first record of a batch waits for others."""


@dataclass(frozen=True, slots=True)
class LaneStats:
    """What became of the records of one lane; every record ever put is counted in exactly one of these."""

    queued: int = 0
    """Waiting, or sent and not yet acknowledged."""
    sent: int = 0
    """Acknowledged by the collector, which means stored."""
    dropped: int = 0
    """Given up, because the queue was full or the time of a shutdown was over."""
    rejected: int = 0
    """Refused by the collector for good."""
    invalid: int = 0
    """Could not be encoded, or was not understood and not queued."""


@dataclass(frozen=True, slots=True)
class Payload(Generic[T]):
    """One encoded request and what is in it."""

    items: Sequence[T]
    body: bytes


@dataclass(slots=True)
class Lane(Generic[T]):
    """Records of one kind on their way out."""

    name: str
    path: str
    content_type: str
    encode: Callable[[T], bytes]
    """One record as an element of a request."""
    wrap: Callable[[Sequence[bytes]], Iterable[bytes]]
    """Elements as the pieces of a request."""
    count_rejected: Callable[[bytes], int]
    """How many records of a request were not stored, out of the body of an answer that says success."""
    max_batch_items: int
    splits_on: frozenset[int]
    """Statuses after which a refused batch is sent again in halves, because one record in it may be the cause."""
    waiting: deque[tuple[T, int]] = field(default_factory=deque)
    """Each with its size in bytes."""
    payloads: deque[Payload[T]] = field(default_factory=deque)
    """Taken from `waiting` and encoded; only the exporter's thread touches it."""
    num_bytes: int = 0
    """Of waiting and of taken records."""
    num_taken: int = 0
    taken_bytes: int = 0
    linger_until: float = 0.0
    retry_at: float = 0.0
    is_told_to_wait: bool = False
    """Whether the server named the time `retry_at`, rather than we ourselves."""
    attempts: int = 0
    num_put: int = 0
    sent: int = 0
    dropped: int = 0
    rejected: int = 0
    invalid: int = 0

    @property
    def num_settled(self) -> int:
        """Records put of which it is known what became of them."""
        return self.num_put - len(self.waiting) - self.num_taken

    def put(self, item: T, size: int) -> bool:
        """Queue one record; True when the exporter's thread must be told: it is the first one, or a batch is full."""
        waiting = self.waiting
        is_first = not waiting
        if is_first:
            self.linger_until = time.monotonic() + LINGER_S
        waiting.append((item, size))
        self.num_bytes += size
        self.num_put += 1
        return is_first or self.num_bytes >= MAX_BATCH_BYTES or len(waiting) >= self.max_batch_items

    def drop_newest(self) -> None:
        """Give up the record that was queued last; older ones keep their place."""
        _, size = self.waiting.pop()
        self.num_bytes -= size
        self.dropped += 1

    def due_at(self, *, hurry: bool) -> float:
        """When the next request should go out; infinity when there is nothing to send."""
        if self.num_taken:
            return self.retry_at
        if not self.waiting:
            return float("inf")
        is_full = self.num_bytes >= MAX_BATCH_BYTES or len(self.waiting) >= self.max_batch_items
        return 0.0 if hurry or is_full else self.linger_until

    def take(self) -> list[T]:
        """Take the next batch out of the queue; its bytes count until `settle`."""
        items: list[T] = []
        while self.waiting and len(items) < self.max_batch_items:
            item, size = self.waiting[0]
            if items and self.taken_bytes + size > MAX_BATCH_BYTES:
                break
            self.waiting.popleft()
            items.append(item)
            self.taken_bytes += size
        self.num_taken = len(items)
        return items

    def settle(self, num_items: int) -> None:
        """Note that it is known what became of `num_items` of the taken batch."""
        self.num_taken -= num_items
        if not self.num_taken:
            self.num_bytes -= self.taken_bytes
            self.taken_bytes = 0

    def put_off(self, wait_s: float, *, is_told: bool) -> None:
        """Send the taken batch again after `wait_s`; `is_told` when the server asked for that."""
        self.attempts += 1
        self.retry_at = time.monotonic() + wait_s
        self.is_told_to_wait = is_told

    def give_up_taken(self) -> None:
        """Give up the taken batch, which can never be sent."""
        self.invalid += self.num_taken
        self.payloads.clear()
        self.settle(self.num_taken)

    def abandon(self) -> None:
        """Drop everything that is queued or taken."""
        self.dropped += len(self.waiting) + self.num_taken
        self.waiting.clear()
        self.payloads.clear()
        self.num_bytes = self.num_taken = self.taken_bytes = 0

    def stats(self) -> LaneStats:
        """The counts now."""
        return LaneStats(len(self.waiting) + self.num_taken, self.sent, self.dropped, self.rejected, self.invalid)


def encode_batch(lane: Lane[T], items: Sequence[T], breathe: Callable[[], None]) -> tuple[list[Payload[T]], list[Exception]]:
    """Encode `items` into requests of at most `MAX_BATCH_BYTES`, and return the errors of those left out.

    `breathe` is called after every small piece of work.
    """
    payloads: list[Payload[T]] = []
    errors: list[Exception] = []
    batch: list[T] = []
    elements: list[bytes] = []
    num_bytes = 0
    for item in items:
        try:
            element = lane.encode(item)
        except Exception as error:  # whatever is wrong with one record, the others must be sent
            errors.append(error)
            continue
        finally:
            breathe()
        if batch and num_bytes + len(element) > MAX_BATCH_BYTES - _NUM_WRAPPING_BYTES:
            payloads.append(Payload(batch, _compress(lane.wrap(elements), breathe)))
            batch, elements, num_bytes = [], [], 0
        batch.append(item)
        elements.append(element)
        num_bytes += len(element)
    if batch:
        payloads.append(Payload(batch, _compress(lane.wrap(elements), breathe)))
    return payloads, errors


def halves_of(lane: Lane[T], payload: Payload[T], breathe: Callable[[], None]) -> list[Payload[T]]:
    """A refused request as two; none for a request of one record, which alone is the cause."""
    middle = len(payload.items) // 2
    parts = (payload.items[:middle], payload.items[middle:]) if middle else ()
    return [half for part in parts for half in encode_batch(lane, part, breathe)[0]]


def _compress(pieces: Iterable[bytes], breathe: Callable[[], None]) -> bytes:
    """The pieces as one gzip body.

    Piece by piece, because other threads can run while zlib works, and cannot while a large body is joined.
    """
    compressor = zlib.compressobj(level=1, wbits=_GZIP)
    compressed = []
    for piece in pieces:
        compressed.append(compressor.compress(piece))
        breathe()
    return b"".join([*compressed, compressor.flush()])
