"""Reading a request's body within its limit, as sent and as decompressed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from nightschool_collector.request.admission import Hold
from nightschool_collector.request.refusal import UNAVAILABLE, RefusedError, too_large

RECEIVE_TIMEOUT_S = 30.0  # three times what the official exporters wait


def declared_bytes(content_length: str | None, *, limit: int) -> int:
    """The length that a client announces, 0 if it does not; one over `limit` is refused before anything is read."""
    declared = int(content_length) if content_length and content_length.isascii() and content_length.isdigit() else 0
    if declared > limit:
        raise too_large(f"{declared} bytes", limit)
    return declared


async def read_body(request: Request, *, limit: int, hold: Hold) -> bytes:
    """The body as sent, never more than `limit`; `hold` admits or refuses each length before it is kept."""
    chunks, size = [], 0
    async with in_time():
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise too_large(f"more than {limit} bytes", limit)
            hold(size)
            chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """A client that sends slowly holds room that others need: it is sent away after a while."""
    try:
        async with asyncio.timeout(RECEIVE_TIMEOUT_S):
            yield
    except TimeoutError:
        message = f"the body was not complete after {RECEIVE_TIMEOUT_S:g} s: try again, with smaller batches"
        raise RefusedError(UNAVAILABLE, message, reason="slow") from None
