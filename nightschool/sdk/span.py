"""A span as it is recorded while the app waits: ids, times and references.

Its attributes and its bytes are made later, in the exporter's thread. It is not a span of OpenTelemetry's SDK, because
making one costs an app more than the rest of the tracer together. What is sent is the same, byte for byte; a test
compares the two.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from opentelemetry.trace import SpanContext

from nightschool.sdk.endpoints.table import Endpoint

MAX_DESCRIPTION = 500
"""Characters of an error's message that are kept; a message can hold a whole document."""
_NUM_FIXED_BYTES = 1024
"""About what a span holds beside content: its objects, and the attributes that are not texts of the app."""


class IdGenerator(Protocol):
    """Makes ids; OpenTelemetry's `IdGenerator` is one."""

    @property
    def generate_trace_id(self) -> Callable[[], int]: ...

    @property
    def generate_span_id(self) -> Callable[[], int]: ...


class RandomIds:
    """Random ids from a generator of its own.

    So neither an app that seeds `random` nor a forked child repeats trace ids. The id 0, which means none, may come up
    once in 2**64 span ids.
    """

    def __init__(self) -> None:
        self._random = random.Random()  # noqa: S311 - ids must be unique, not secret
        self.generate_trace_id: Callable[[], int] = functools.partial(self._random.getrandbits, 128)
        self.generate_span_id: Callable[[], int] = functools.partial(self._random.getrandbits, 64)
        self.seed()

    def seed(self) -> None:
        """Seed the generator anew from the operating system."""
        self._random.seed(os.urandom(32))


RANDOM_IDS = RandomIds()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=RANDOM_IDS.seed)


class SpanRecord:
    """One span of a request or of a model call."""

    ended_ns = 0
    """0 while it is open."""
    attributes: Mapping[str, Any] = MappingProxyType({})
    """Attributes of this span alone."""
    late: Mapping[str, Any] | None = None
    """Attributes that became known later; they replace earlier ones of the same name."""
    link: SpanContext | None = None
    error: tuple[str, str] | None = None
    """Type and message of the error that ended it."""
    num_text_bytes = 0
    """Of those texts in `attributes` and `late` that come from the app and may be long."""
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
        """`parent_id` is 0 for the first span of a trace; `stamps` are shared with other spans and never changed."""
        self.name = name
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.stamps = stamps
        self.started_ns = started_ns

    def fail(self, error: BaseException) -> None:
        """Record that `error` ended it."""
        self.error = type(error).__qualname__, str(error)[:MAX_DESCRIPTION]

    def num_bytes(self) -> int:
        """About how much memory it holds: the content, and for all else one fixed number, because this must be fast."""
        total = _NUM_FIXED_BYTES + self.num_text_bytes
        if self.endpoint is None:
            return total
        for content in (self.request, self.answer):
            if isinstance(content, bytes):
                total += len(content)
            elif content is not None:
                total += sum(len(value) for value in content.values() if isinstance(value, str))
        return total
