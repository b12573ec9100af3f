"""What a request and its calls need of the client that records them. A protocol, so that neither imports the client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nightschool.sdk.shield import Shield
from nightschool.sdk.span import SpanRecord


class Recorder(Protocol):
    """Records for one tenant; `nightschool.Client` is the implementation."""

    @property
    def shield(self) -> Shield:
        """Keeps our errors from the app."""
        ...

    @property
    def is_enabled(self) -> bool:
        """Whether anything is recorded; if not, no span is ever started."""
        ...

    @property
    def now_ns(self) -> Callable[[], int]:
        """The clock: nanoseconds since 1970."""
        ...

    def start_span(self, name: str, stamps: Mapping[str, Any], *, parent: SpanRecord | None) -> SpanRecord:
        """Start a span below `parent`, or a trace of its own without one; never below a span of the app."""
        ...

    def end_span(self, span: SpanRecord) -> None:
        """End `span` and hand it to the exporter."""
        ...

    def stamps(
        self,
        *,
        task: object = None,
        user: object = None,
        conversation: object = None,
        episode: object = None,
        captures_content: bool = True,
    ) -> dict[str, Any]:
        """The attributes that every span of a request carries."""
        ...

    def captures_content(self, task: str) -> bool:
        """Whether texts of `task` are recorded."""
        ...

    def pseudonym(self, user: object) -> str:
        """What is sent in place of `user`; empty for None."""
        ...
