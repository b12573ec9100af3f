"""A span while the app waits: ids, times and references. What it means, and its bytes, are made later in the exporter's thread.

Not an OpenTelemetry SDK span, because making one costs an app more than the rest of the tracer together. What goes over the wire is
the same, byte for byte; a test compares.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from opentelemetry.trace import SpanContext

from nightschool.sdk.openai.endpoints import Endpoint

MAX_DESCRIPTION = 500
_NUM_FIXED_BYTES = 1024
"""What a span holds besides content, roughly: its objects and the attributes that are not texts of the app."""


class IdGenerator(Protocol):
    """Makes ids; OpenTelemetry's `IdGenerator` is one."""

    @property
    def generate_trace_id(self) -> Callable[[], int]: ...

    @property
    def generate_span_id(self) -> Callable[[], int]: ...


class RandomIds:
    """Random ids from a generator of its own: an app that seeds `random` must not repeat trace ids, nor a forked child.

    The id 0, which stands for none, comes once in 2**64 spans.
    """

    def __init__(self) -> None:
        self._random = random.Random()  # noqa: S311 - ids must be unlike each other, not secret
        self.generate_trace_id: Callable[[], int] = functools.partial(self._random.getrandbits, 128)
        self.generate_span_id: Callable[[], int] = functools.partial(self._random.getrandbits, 64)
        self.seed()

    def seed(self) -> None:
        """Start from fresh randomness of the operating system."""
        self._random.seed(os.urandom(32))


RANDOM_IDS = RandomIds()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=RANDOM_IDS.seed)


class SpanRecord:
    """One span of a request or of a model call."""

    ended_ns = 0
    """0 while it is open."""
    attributes: Mapping[str, Any] = MappingProxyType({})
    """Attributes of its own, ready as they are."""
    late: Mapping[str, Any] | None = None
    """Attributes that came later and win."""
    link: SpanContext | None = None
    error: tuple[str, str] | None = None
    """The kind of the error that ended it, and its words."""
    num_text_bytes = 0
    """Of texts in `attributes` and `late`, where they are an app's and may be long."""
    # Of a model call only.
    endpoint: Endpoint | None = None
    request: bytes | Mapping[str, Any] | None = None
    """A snapshot of the parameters (`take_snapshot`), or attributes where none could be taken."""
    answer: bytes | Mapping[str, Any] | None = None
    """What was taken from the answer, in the same two forms."""
    server: tuple[str, int | None] | None = None
    first_chunk_s: float | None = None
    num_resends = 0

    def __init__(
        self, name: str, trace_id: int, span_id: int, parent_id: int, stamps: Mapping[str, Any], started_ns: int
    ) -> None:
        """`parent_id` is 0 for the first span of a trace; `stamps` are attributes shared with other spans, never changed in place."""
        self.name = name
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.stamps = stamps
        self.started_ns = started_ns

    def fail(self, error: BaseException) -> None:
        """`error` ended it."""
        self.error = type(error).__qualname__, str(error)[:MAX_DESCRIPTION]

    def num_bytes(self) -> int:
        """About how much it holds; the content as it is, all else in a round figure, to stay fast."""
        total = _NUM_FIXED_BYTES + self.num_text_bytes
        if self.endpoint is None:
            return total
        for content in (self.request, self.answer):
            if isinstance(content, bytes):
                total += len(content)
            elif content is not None:
                total += sum(len(value) for value in content.values() if isinstance(value, str))
        return total
