"""Records what the official `openai` client sends and gets: chat completions, sync, async, streamed, parsed or raw.

Our own, and small, because none of the maintained instrumentations gives all that training needs without side effects:

- `opentelemetry-instrumentation-genai-openai` 1.3b0 captures content only where an environment variable says so for the whole
  process, is one singleton that the app may need for its own provider, hands the server no `traceparent`, and leaves out
  what an app sends in `extra_body`; `opentelemetry-instrumentation-openai-v2` shares the first two.
- `openinference-instrumentation-openai` 0.1.66 takes a provider but speaks the OpenInference dialect.

It wraps `OpenAI.request` and `AsyncOpenAI.request`, the one door that `create`, `parse`, `stream` and `with_raw_response` go
through, where the body is final and retries still count as one call. The answers the app gets are the client's own objects.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from nightschool import chat
from nightschool.calls import TRACEPARENT, ModelCall
from nightschool.errors import MissingExtraError
from nightschool.tracer import Client

CHAT_PATH = "/chat/completions"
_NOT_CAPTURED = ("/completions", "/responses")
_RAW_RESPONSE = "x-stainless-raw-response"
_ORIGINAL = "_nightschool_original"


def instrument(client_of: Callable[[], Client]) -> None:
    """Wrap the `openai` client's classes, once; `client_of` says at each call who records it."""
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("instrument_openai()", "openai", error.name or "openai") from None
    if not hasattr(openai.OpenAI.request, _ORIGINAL):
        openai.OpenAI.request = _wrap_sync(openai.OpenAI.request, client_of)
        openai.AsyncOpenAI.request = _wrap_async(openai.AsyncOpenAI.request, client_of)


def uninstrument() -> None:
    """Undo `instrument`, unless somebody has wrapped our wrappers since."""
    import openai

    for kind in (openai.OpenAI, openai.AsyncOpenAI):
        if original := getattr(kind.request, _ORIGINAL, None):
            kind.request = original


def _wrap_sync(original: Callable[..., Any], client_of: Callable[[], Client]) -> Callable[..., Any]:
    @functools.wraps(original)
    def request(self: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        recording = _begin(client_of(), self, options)
        if recording is None:
            return original(self, cast_to, options, **kwargs)
        try:
            result = original(self, cast_to, options, **kwargs)
        except BaseException as error:
            _failed(recording.call, error)
            raise
        return recording.finish(result, is_streamed=kwargs.get("stream") is True)

    setattr(request, _ORIGINAL, original)
    return request


def _wrap_async(original: Callable[..., Any], client_of: Callable[[], Client]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def request(self: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        recording = _begin(client_of(), self, options)
        if recording is None:
            return await original(self, cast_to, options, **kwargs)
        try:
            result = await original(self, cast_to, options, **kwargs)
        except BaseException as error:
            _failed(recording.call, error)
            raise
        return recording.finish(result, is_streamed=kwargs.get("stream") is True)

    setattr(request, _ORIGINAL, original)
    return request


# --- before the request -------------------------------------------------------------------------------------------------
def _begin(client: Client, api: Any, options: Any) -> _Recording | None:
    """Start recording if this is a chat completion; None for everything else and when nothing is recorded."""
    if not client.is_enabled:
        return None
    with client.shield:
        if options.url in _NOT_CAPTURED:
            client.shield.log_once(f"calls of the openai client to {options.url} are not recorded; {CHAT_PATH} is")
        if options.url != CHAT_PATH or not isinstance(options.json_data, Mapping):
            return None
        params = {**options.json_data, **(options.extra_json or {})}
        url = api.base_url
        call = client.start_call(params, provider="openai", server=(url.host, url.port) if url.host else None)
        headers = dict(options.headers) if isinstance(options.headers, Mapping) else {}
        raw = next((value for name, value in headers.items() if name.lower() == _RAW_RESPONSE), None)
        if not any(name.lower() == TRACEPARENT for name in headers):
            options.headers = {**headers, **call.headers}
        return _Recording(client, call, raw)
    return None


def _failed(call: ModelCall, error: BaseException) -> None:
    """Record `error`, and the answer where the client got one but could not parse it."""
    completion = getattr(error, "completion", None)
    if completion is not None:
        call.respond(completion)
    call.fail(error)


class _Recording:
    """What is to be done with the answer of one call."""

    def __init__(self, client: Client, call: ModelCall, raw: str | None) -> None:
        self._client = client
        self.call = call
        self._raw = raw

    def finish(self, result: Any, *, is_streamed: bool) -> Any:
        """Record `result`, or watch it while the app reads it; returns what the app gets, the client's own object."""
        with self._client.shield:
            if is_streamed and self._raw == "true":
                self._watch_parsed(result)
                return result
            if is_streamed and self._raw is None:
                self._watch(result)
                return result
            if self._raw is None:
                self.call.respond(result)
            elif self._raw == "true":
                self.call.respond(json.loads(result.http_response.content))
            else:
                self._client.shield.log_once("answers read through with_streaming_response are not recorded")
        self.call.end()
        return result

    def _watch_parsed(self, response: Any) -> None:
        """A raw response becomes a stream when the app parses it."""
        parse = response.parse

        @functools.wraps(parse)
        def watched(*args: Any, **kwargs: Any) -> Any:
            stream = parse(*args, **kwargs)
            with self._client.shield:
                if not isinstance(getattr(stream, "_iterator", None), (_Watch, _AsyncWatch)):
                    self._watch(stream)
            return stream

        response.parse = watched

    def _watch(self, stream: Any) -> None:
        """Read along with the app: the stream keeps its type, only its inner iterator is replaced."""
        is_async = hasattr(stream._iterator, "__anext__")
        watch = (_AsyncWatch if is_async else _Watch)(stream._iterator, self._client, self.call)
        stream._iterator = watch
        name = "aclose" if is_async else "close"
        close = getattr(stream.response, name)

        # Every way to close a stream early ends here. One that is dropped unclosed ends when Python collects it, as its
        # connection does.
        if is_async:

            async def close_async() -> None:
                watch.closed()
                await close()

            setattr(stream.response, name, close_async)
        else:

            def close_sync() -> None:
                watch.closed()
                close()

            setattr(stream.response, name, close_sync)


# --- while the answer streams -------------------------------------------------------------------------------------------
class _Reading:
    """Puts the chunks together and records the whole once, at the end, at an error, or when the app stops reading."""

    def __init__(self, inner: Any, client: Client, call: ModelCall) -> None:
        self._inner = inner
        self._client = client
        self._call = call
        self._answer = chat.StreamedAnswer()
        self._is_reading = False
        self._is_done = False

    def _got(self, chunk: Any) -> None:
        with self._client.shield:
            self._call.first_chunk()
            self._answer.add(chunk)
            self._call.got_id(self._answer.response_id)

    def _done(self, error: BaseException | None = None) -> None:
        if not self._is_done:
            self._is_done = True
            with self._client.shield:
                self._call.respond(self._answer.response())
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
    """Reads along with a `Stream`."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self._is_reading = True
        try:
            chunk = next(self._inner)
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


class _AsyncWatch(_Reading):
    """Reads along with an `AsyncStream`."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self._is_reading = True
        try:
            chunk = await anext(self._inner)
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
