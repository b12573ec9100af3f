"""The stream that nightschool.toml describes, opened."""

from __future__ import annotations

from nightschool.config.settings import StreamConfig
from nightschool.stream import DEFAULT_WINDOW_MS, Stream, open_stream


def open_configured(settings: StreamConfig, *, outcome_window_ms: int = DEFAULT_WINDOW_MS) -> Stream:
    """Open the stream that [stream] of nightschool.toml describes.

    Topics of Kafka that it creates keep their records longer than `outcome_window_ms`.
    """
    return open_stream(
        settings.url, partitions=settings.partitions, security=settings.security(), outcome_window_ms=outcome_window_ms
    )
