"""Spans that wait to be sent: a queue for each key, bounded in bytes for each tenant and in all."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nightschool_serving.telemetry.spans import ServedRequest

TENANT_BYTES = 16 << 20
"""Of one tenant: some 250 answers of 1,500 tokens, or minutes of traffic while its share of the collector is full."""
TOTAL_BYTES = 64 << 20
"""Of all tenants."""
_SPAN_BYTES = 1024  # what a span has beside tokens and texts
_TOKEN_BYTES = 72  # an id (a list's slot and an integer: 36 bytes), and its log-probability (32)

Key = tuple[str, str]
"""Tenant and Authorization header: one export request holds the spans of one key."""


@dataclass(slots=True)
class SpanQueue:
    """The spans of one key."""

    key: Key
    due_s: float
    """Clock reading before which nothing is sent, in seconds."""
    attempts: int = 0
    """How often the spans at its head could not be sent."""
    waiting: deque[tuple[ServedRequest, int]] = field(default_factory=deque)
    """With the size of each, in bytes."""


class SpanQueues:
    """The queues of all keys; not safe between threads by itself."""

    def __init__(self, tenant_bytes: int, total_bytes: int) -> None:
        self._tenant_bytes, self._total_bytes = tenant_bytes, total_bytes
        self._queues: dict[Key, SpanQueue] = {}
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def put(self, request: ServedRequest, due_s: float) -> str | None:
        """Take a span; or why there is no room for it. A queue that was empty is due at `due_s`."""
        size = size_of(request)
        if self._held[request.tenant] + size > self._tenant_bytes:
            return f"{self._tenant_bytes} bytes of tenant {request.tenant} are already waiting"
        if self._held.total() + size > self._total_bytes:
            return f"{self._total_bytes} bytes are already waiting"
        key = (request.tenant, request.authorization)
        queue = self._queues.setdefault(key, SpanQueue(key, due_s))
        queue.waiting.append((request, size))
        self._held[request.tenant] += size
        return None

    def first(self) -> SpanQueue | None:
        """The queue that is due first."""
        return min(self._queues.values(), key=lambda queue: queue.due_s, default=None)

    def head(self, queue: SpanQueue, limit: int) -> list[ServedRequest]:
        """The first spans of `queue`, at most `limit`; they stay in it."""
        return [request for request, _ in list(queue.waiting)[:limit]]

    def remove(self, queue: SpanQueue, count: int) -> None:
        """Take the first `count` spans out: they were sent, or given up."""
        for _ in range(count):
            self._held[queue.key[0]] -= queue.waiting.popleft()[1]
        queue.attempts = 0
        if not queue.waiting:
            del self._queues[queue.key]
            if not self._held[queue.key[0]]:
                del self._held[queue.key[0]]


def size_of(request: ServedRequest) -> int:
    """About how many bytes of memory a span takes until it is sent."""
    recording = request.recording
    num_tokens = sum(map(len, recording.prompts)) + sum(len(choice.token_ids) for choice in recording.choices.values())
    return _SPAN_BYTES + _TOKEN_BYTES * num_tokens + sum(map(_size_of_value, request.sent.values()))


def _size_of_value(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return _size_of_value(value.keys()) + _size_of_value(value.values())
    return sum(map(_size_of_value, value)) if isinstance(value, Iterable) else 0
