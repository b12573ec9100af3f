"""Reads along with the app while an answer streams, and records the whole at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from nightschool.sdk.calls import ModelCall
from nightschool.sdk.client import Client
from nightschool.sdk.openai.endpoints import StreamedAnswer

_MAX_BODY_BYTES = 16 << 20
"""Of an answer that the app reads by hand; a longer one is recorded without its text."""


def _watch_close(response: Any, watch: _Watch | _AsyncWatch, *, is_async: bool) -> None:
    """Every way to close a stream early ends here. One dropped unclosed ends when Python collects it, as its connection does."""
    name = "aclose" if is_async else "close"
    close = getattr(response, name)

    if is_async:

        async def close_async() -> None:
            watch.closed()
            await close()

        setattr(response, name, close_async)
    else:

        def close_sync() -> None:
            watch.closed()
            close()

        setattr(response, name, close_sync)


class _Body:
    """An answer that comes whole, in pieces of bytes."""

    response_id = None  # the app reads it itself

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._num_bytes = 0

    def add(self, chunk: bytes) -> None:
        """Take the next bytes, decompressed."""
        self._num_bytes += len(chunk)
        if self._num_bytes <= _MAX_BODY_BYTES:
            self._pieces.append(chunk)

    def response(self) -> Any:
        """The answer; None when it was not read to its end."""
        try:
            return json.loads(b"".join(self._pieces))
        except ValueError:
            return None


class _EventStream:
    """An answer that comes as server-sent events, in pieces of bytes that need not end where an event does."""

    def __init__(self, answer: StreamedAnswer) -> None:
        self._answer = answer
        self._rest = b""

    @property
    def response_id(self) -> str | None:
        return self._answer.response_id

    def add(self, chunk: bytes) -> None:
        """Take the next bytes, decompressed."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"data" and value.strip() != b"[DONE]":
                self._answer.add(json.loads(value))

    def response(self) -> Any:
        return self._answer.response()


class _Reading:
    """Puts the chunks together and records the whole once, at the end, at an error, or when the app stops reading."""

    def __init__(self, inner: Any, client: Client, call: ModelCall, answer: StreamedAnswer, *, is_streamed: bool = True) -> None:
        self.inner = inner
        self._client = client
        self._call = call
        self._answer = answer
        self._is_streamed = is_streamed
        self._is_reading = False
        self._is_done = False

    def _got(self, chunk: Any) -> None:
        with self._client.shield:
            if self._is_streamed:
                self._call.first_chunk()
            self._answer.add(chunk)
            self._call.got_id(self._answer.response_id)

    def _done(self, error: BaseException | None = None) -> None:
        if not self._is_done:
            self._is_done = True
            with self._client.shield:
                if (response := self._answer.response()) is not None:
                    self._call.respond(response)
            if error is not None:
                self._call.fail(error)
            self._call.end()

    def closed(self) -> None:
        """The response is closed; by the app, unless it happens while the next chunk is being read."""
        if not self._is_reading:
            self._done()

    def __del__(self) -> None:
        self._done()


class _Watch(_Reading):
    """Reads along with a `Stream`, or with the bytes of a body."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._is_reading = True
        try:
            chunk = next(self.inner)
        except StopIteration:
            self._done()
            raise
        except BaseException as error:
            self._done(error)
            raise
        finally:
            self._is_reading = False
        self._got(chunk)
        return chunk

    def close(self) -> None:
        """As of a generator, which this stands for."""
        self.closed()
        self.inner.close()


class _AsyncWatch(_Reading):
    """Reads along with an `AsyncStream`, or with the bytes of a body."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self._is_reading = True
        try:
            chunk = await anext(self.inner)
        except StopAsyncIteration:
            self._done()
            raise
        except BaseException as error:
            self._done(error)
            raise
        finally:
            self._is_reading = False
        self._got(chunk)
        return chunk

    async def aclose(self) -> None:
        """As of a generator, which this stands for."""
        self.closed()
        await self.inner.aclose()
