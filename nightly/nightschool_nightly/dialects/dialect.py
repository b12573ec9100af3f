"""What a dialect is: one way in which an instrumentation writes model calls, and the functions that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nightschool_nightly.dialects.feedback import Feedback
from nightschool_nightly.dialects.span import RawSpan


@dataclass(frozen=True, slots=True)
class Dialect:
    """One dialect; `table` holds all of them. What a dialect does not have is left out."""

    markers: frozenset[str] = frozenset()
    """First words of attribute names (`ai` of `ai.model.id`). A span that has none of them is not given to `read`."""
    read: Callable[[RawSpan], dict[str, Any]] | None = None
    """What a span says, under the names of the GenAI conventions; messages in any shape that `messages` knows."""
    feedback: Callable[[RawSpan], Iterable[Feedback]] | None = None
    """What a span says about how something turned out. Every span is given to it."""
    kind: str | None = None
    """The attribute by which a span says what it is. One that has it and is no model call is not an unknown one."""
