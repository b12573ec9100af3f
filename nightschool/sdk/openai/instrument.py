"""Records what the official `openai` client sends and gets: chats, completions and responses; sync, async, streamed, parsed or raw.

Our own, and small, because none of the maintained instrumentations gives all that training needs without side effects:

- `opentelemetry-instrumentation-genai-openai` 1.3b0 captures content only where an environment variable says so for the whole
  process, is one singleton that the app may need for its own provider, hands the server no `traceparent`, and leaves out
  what an app sends in `extra_body`; `opentelemetry-instrumentation-openai-v2` shares the first two.
- `openinference-instrumentation-openai` 0.1.66 takes a provider but speaks the OpenInference dialect.

It wraps `OpenAI.request` and `AsyncOpenAI.request`, the one door that `create`, `parse`, `stream` and `with_raw_response` go
through, where the body is final and the client's own retries are one call. The answers the app gets are the client's own objects.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from nightschool.errors import MissingExtraError
from nightschool.sdk.calls import ModelCall
from nightschool.sdk.client import Client
from nightschool.sdk.openai.endpoints import BY_PATH, RESPONSES, Endpoint, StreamedAnswer
from nightschool.sdk.openai.reading import _AsyncWatch, _Body, _EventStream, _Watch, _watch_close
from nightschool.sdk.openai.responses import KEPT_ELSEWHERE

_RAW_RESPONSE = "x-stainless-raw-response"
_ORIGINAL = "_nightschool_original"
_newest_server: tuple[Any, tuple[str, int | None] | None] = (None, None)
_sending: ContextVar[ModelCall | None] = ContextVar("nightschool_sending", default=None)


def instrument(client_of: Callable[[], Client]) -> None:
    """Wrap the `openai` client's classes, once; `client_of` says at each call who records it."""
    try:
        import openai
    except ModuleNotFoundError as error:
        raise MissingExtraError("instrument_openai()", "openai", error.name or "openai") from None
    if not hasattr(openai.OpenAI.request, _ORIGINAL):
        openai.OpenAI.request = _wrap_sync(openai.OpenAI.request, client_of)
        openai.AsyncOpenAI.request = _wrap_async(openai.AsyncOpenAI.request, client_of)
        for kind in (openai.OpenAI, openai.AsyncOpenAI):
            if build := getattr(kind, "_build_request", None):  # private: without it, only the count of retries is missing
                kind._build_request = _count_resends(build)


def uninstrument() -> None:
    """Undo `instrument`, unless somebody has wrapped our wrappers since."""
    import openai

    for kind in (openai.OpenAI, openai.AsyncOpenAI):
        for name in ("request", "_build_request"):
            if original := getattr(getattr(kind, name, None), _ORIGINAL, None):
                setattr(kind, name, original)


def _wrap_sync(original: Callable[..., Any], client_of: Callable[[], Client]) -> Callable[..., Any]:
    @functools.wraps(original)
    def request(self: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        recording = _begin(client_of(), self, options)
        if recording is None:
            return original(self, cast_to, options, **kwargs)
        token = _sending.set(recording.call)
        try:
            result = original(self, cast_to, options, **kwargs)
        except BaseException as error:
            _failed(recording.call, error)
            raise
        finally:
            _sending.reset(token)
        return recording.finish(result, is_streamed=kwargs.get("stream") is True)

    setattr(request, _ORIGINAL, original)
    return request


def _wrap_async(original: Callable[..., Any], client_of: Callable[[], Client]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def request(self: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
        recording = _begin(client_of(), self, options)
        if recording is None:
            return await original(self, cast_to, options, **kwargs)
        token = _sending.set(recording.call)
        try:
            result = await original(self, cast_to, options, **kwargs)
        except BaseException as error:
            _failed(recording.call, error)
            raise
        finally:
            _sending.reset(token)
        return recording.finish(result, is_streamed=kwargs.get("stream") is True)

    setattr(request, _ORIGINAL, original)
    return request


def _count_resends(original: Callable[..., Any]) -> Callable[..., Any]:
    """The client builds a request for every attempt, and says which attempt it is."""

    @functools.wraps(original)
    def build_request(self: Any, options: Any, **kwargs: Any) -> Any:
        call, num_resends = _sending.get(), kwargs.get("retries_taken")
        if call is not None and num_resends:
            call.resent(num_resends)
        return original(self, options, **kwargs)

    setattr(build_request, _ORIGINAL, original)
    return build_request


# --- before the request -------------------------------------------------------------------------------------------------
def _begin(client: Client, api: Any, options: Any) -> _Recording | None:
    """Start recording if this asks a model for an answer; None for everything else and when nothing is recorded."""
    endpoint = BY_PATH.get(options.url)
    if endpoint is None or not client.is_enabled:
        return None
    try:
        params = options.json_data
        if type(params) is not dict:
            return None
        if options.extra_json:
            params = {**params, **options.extra_json}
        if endpoint is RESPONSES and any(params.get(name) for name in KEPT_ELSEWHERE):
            client.shield.log_once("responses that continue what is kept at the provider are recorded without their input")
        call = client.start_call(params, provider="openai", server=_server_of(api.base_url), endpoint=endpoint)
        given = options.headers or {}  # falsy when not given
        if not given:
            options.headers = call.headers
            return _Recording(client, call, endpoint, None)
        names = {name.lower(): value for name, value in given.items()}
        options.headers = {**given, **{name: value for name, value in call.headers.items() if name not in names}}
        return _Recording(client, call, endpoint, names.get(_RAW_RESPONSE))
    except Exception as error:
        client.shield.caught(error)
        return None


def _server_of(url: Any) -> tuple[str, int | None] | None:
    """Host and port; taking them out of the newest client's URL again and again would cost more than a span."""
    global _newest_server
    known, server = _newest_server
    if known is not url:
        server = (url.host, url.port) if url.host else None
        _newest_server = url, server
    return server


def _failed(call: ModelCall, error: BaseException) -> None:
    """Record `error`, and the answer where the client got one but could not parse it."""
    completion = getattr(error, "completion", None)
    if completion is not None:
        call.respond(completion)
    call.fail(error)


class _Recording:
    """What is to be done with the answer of one call."""

    def __init__(self, client: Client, call: ModelCall, endpoint: Endpoint, raw: str | None) -> None:
        self._client = client
        self.call = call
        self._endpoint = endpoint
        self._raw = raw

    def finish(self, result: Any, *, is_streamed: bool) -> Any:
        """Record `result`, or watch it while the app reads it; returns what the app gets, the client's own object."""
        if not is_streamed and self._raw is None:
            self.call.respond(result)
            self.call.end()
            return result
        with self._client.shield:
            if self._raw is not None and self._raw != "true":
                self._watch_body(result.http_response, is_streamed=is_streamed)
            elif not is_streamed:
                self.call.respond(json.loads(result.http_response.content))
                self.call.end()
            elif self._raw:
                self._watch_parsed(result)
            else:
                self._watch(result)
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
        watch = (_AsyncWatch if is_async else _Watch)(stream._iterator, self._client, self.call, self._endpoint.streamed())
        stream._iterator = watch
        _watch_close(stream.response, watch, is_async=is_async)

    def _watch_body(self, response: Any, *, is_streamed: bool) -> None:
        """Read along where the app reads the body itself: every way to read it goes through `iter_bytes`."""
        is_async = hasattr(response.stream, "__aiter__")
        answer: StreamedAnswer = _EventStream(self._endpoint.streamed()) if is_streamed else _Body()
        kind = _AsyncWatch if is_async else _Watch
        watch = kind(None, self._client, self.call, answer, is_streamed=is_streamed)
        name = "aiter_bytes" if is_async else "iter_bytes"
        original = getattr(response, name)

        @functools.wraps(original)
        def iterate(*args: Any, **kwargs: Any) -> Any:
            watch.inner = original(*args, **kwargs)
            return watch

        setattr(response, name, iterate)
        _watch_close(response, watch, is_async=is_async)
