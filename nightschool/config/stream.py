"""The stream that nightschool.toml describes, opened."""

from __future__ import annotations

from nightschool.config.settings import StreamConfig
from nightschool.stream import DEFAULT_WINDOW_MS, Stream, open_stream


def open_configured(settings: StreamConfig, *, outcome_window_ms: int = DEFAULT_WINDOW_MS) -> Stream:
    """Open the stream that [stream] of nightschool.toml describes; who creates topics says how long outcomes are awaited."""
    return open_stream(
        settings.url, partitions=settings.partitions, security=settings.security(), outcome_window_ms=outcome_window_ms
    )
