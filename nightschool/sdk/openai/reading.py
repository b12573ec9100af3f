"""Reads an answer along with the app, piece by piece, and records the whole at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from nightschool.sdk.calls import ModelCall
from nightschool.sdk.endpoints.table import StreamedAnswer
from nightschool.sdk.recorder import Recorder

_MAX_BODY_BYTES = 16 << 20
"""Of an answer whose body the app reads itself; a longer one is recorded without its text, to bound memory."""


# --- pieces of bytes --------------------------------------------------------------------------------------------------
class WholeBody:
    """A `StreamedAnswer` out of a body that is one JSON text, read in pieces of bytes."""

    response_id = None  # not known before the end, and the app reads the body itself

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


class StreamedEvents:
    """A `StreamedAnswer` out of server-sent events, read in pieces of bytes that need not end where an event does."""

    def __init__(self, answer: StreamedAnswer) -> None:
        self._answer = answer
        self._rest = b""

    @property
    def response_id(self) -> str | None:
        """The id of the answer, once an event has named it."""
        return self._answer.response_id

    def add(self, chunk: bytes) -> None:
        """Take the next bytes, decompressed."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"data" and value.strip() != b"[DONE]":
                self._answer.add(json.loads(value))

    def response(self) -> Any:
        """What the events so far add up to."""
        return self._answer.response()


# --- reading along ----------------------------------------------------------------------------------------------------
class _Recorded:
    """Puts the chunks together and records the whole once: at the end, at an error, or when the app stops reading."""

    def __init__(
        self, inner: Any, client: Recorder, call: ModelCall, answer: StreamedAnswer, *, is_streamed: bool = True
    ) -> None:
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
        """The response is closed: by the app, unless it happens while the next chunk is being read."""
        if not self._is_reading:
            self._done()

    def __del__(self) -> None:
        self._done()


class Reading(_Recorded):
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
        """Close the generator that this stands in for."""
        self.closed()
        self.inner.close()


class AsyncReading(_Recorded):
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
        """Close the generator that this stands in for."""
        self.closed()
        await self.inner.aclose()


def end_on_close(response: Any, reading: Reading | AsyncReading, *, is_async: bool) -> None:
    """End `reading` when the app closes `response`: every way to leave a stream early closes it.

    A response that is dropped without being closed ends when Python collects it, as its connection does.
    """
    name = "aclose" if is_async else "close"
    close = getattr(response, name)

    if is_async:

        async def close_async() -> None:
            reading.closed()
            await close()

        setattr(response, name, close_async)
    else:

        def close_sync() -> None:
            reading.closed()
            close()

        setattr(response, name, close_sync)
