"""Records what the official `openai` client sends and gets.

That is chats, completions and responses; sync or async, streamed, parsed or raw. The instrumentation is our own, and
small, because no maintained instrumentation gives all that training needs without side effects:

- `opentelemetry-instrumentation-genai-openai` 1.3b0 captures content only where an environment variable says so for the
  whole process, is one singleton that the app may need for its own provider, hands the server no `traceparent`, and
  leaves out what an app sends in `extra_body`; `opentelemetry-instrumentation-openai-v2` shares the first two.
- `openinference-instrumentation-openai` 0.1.66 takes a provider but writes the OpenInference dialect.

It wraps `OpenAI.request` and `AsyncOpenAI.request`. `create`, `parse`, `stream` and `with_raw_response` all go through
these two methods. There the body is final, and the client's own retries are inside the one call. The app gets the
client's own objects.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from nightschool.errors import MissingExtraError
from nightschool.sdk.calls import ModelCall, start_model_call
from nightschool.sdk.endpoints.responses import KEPT_ELSEWHERE
from nightschool.sdk.endpoints.table import BY_PATH, RESPONSES, Endpoint, StreamedAnswer
from nightschool.sdk.openai.reading import AsyncReading, Reading, StreamedEvents, WholeBody, end_on_close
from nightschool.sdk.recorder import Recorder

_RAW_RESPONSE = "x-stainless-raw-response"
_ORIGINAL = "_nightschool_original"
_sending: ContextVar[ModelCall | None] = ContextVar("nightschool_sending", default=None)


def instrument(client_of: Callable[[], Recorder]) -> None:
    """Wrap the `openai` client's classes, once; `client_of` says at each call which client records it."""
    try:
        import openai
    except ModuleNotFoundError as error:
        raise MissingExtraError("instrument_openai()", "openai", error.name or "openai") from None
    if not hasattr(openai.OpenAI.request, _ORIGINAL):
        instrumentation = Instrumentation(client_of)
        openai.OpenAI.request = instrumentation.wrap_sync(openai.OpenAI.request)
        openai.AsyncOpenAI.request = instrumentation.wrap_async(openai.AsyncOpenAI.request)
        for kind in (openai.OpenAI, openai.AsyncOpenAI):
            # It is private: where it is missing, only the number of retries is unknown.
            if build := getattr(kind, "_build_request", None):
                kind._build_request = _count_resends(build)


def uninstrument() -> None:
    """Undo `instrument`, unless another library has wrapped our wrappers since."""
    import openai

    for kind in (openai.OpenAI, openai.AsyncOpenAI):
        for name in ("request", "_build_request"):
            if original := getattr(getattr(kind, name, None), _ORIGINAL, None):
                setattr(kind, name, original)


class Instrumentation:
    """The wrappers of one `instrument` call, and what they remember from one request to the next."""

    def __init__(self, client_of: Callable[[], Recorder]) -> None:
        self._client_of = client_of
        self._newest_server: tuple[Any, tuple[str, int | None] | None] = (None, None)
        """The base URL seen last, with its host and port. One tuple, replaced whole, so that threads need no lock."""

    def wrap_sync(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`OpenAI.request`, recorded."""

        @functools.wraps(original)
        def request(api: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
            recording = self.begin(api, options)
            if recording is None:
                return original(api, cast_to, options, **kwargs)
            token = _sending.set(recording.call)
            try:
                result = original(api, cast_to, options, **kwargs)
            except BaseException as error:
                _failed(recording.call, error)
                raise
            finally:
                _sending.reset(token)
            return recording.finish(result, is_streamed=kwargs.get("stream") is True)

        setattr(request, _ORIGINAL, original)
        return request

    def wrap_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`AsyncOpenAI.request`, recorded."""

        @functools.wraps(original)
        async def request(api: Any, cast_to: Any, options: Any, **kwargs: Any) -> Any:
            recording = self.begin(api, options)
            if recording is None:
                return await original(api, cast_to, options, **kwargs)
            token = _sending.set(recording.call)
            try:
                result = await original(api, cast_to, options, **kwargs)
            except BaseException as error:
                _failed(recording.call, error)
                raise
            finally:
                _sending.reset(token)
            return recording.finish(result, is_streamed=kwargs.get("stream") is True)

        setattr(request, _ORIGINAL, original)
        return request

    def begin(self, api: Any, options: Any) -> Recording | None:
        """Start recording if this asks a model for an answer; None for everything else and when nothing is recorded.

        `api` is the `openai` client, `options` what it is about to send; our headers are added to that.
        """
        endpoint = BY_PATH.get(options.url)
        client = self._client_of()
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
            server = self._server_of(api.base_url)
            call = start_model_call(client, params, provider="openai", server=server, endpoint=endpoint)
            given = options.headers or {}  # false when none are given
            if not given:
                options.headers = call.headers
                return Recording(client, call, endpoint, None)
            names = {name.lower(): value for name, value in given.items()}
            options.headers = {**given, **{name: value for name, value in call.headers.items() if name not in names}}
            return Recording(client, call, endpoint, names.get(_RAW_RESPONSE))
        except Exception as error:
            client.shield.caught(error)
            return None

    def _server_of(self, url: Any) -> tuple[str, int | None] | None:
        """Host and port of `url`, remembered, because taking them out of it at every request costs more than a span."""
        known, server = self._newest_server
        if known is not url:
            server = (url.host, url.port) if url.host else None
            self._newest_server = url, server
        return server


def _count_resends(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the method that builds a request: it runs for every attempt, and is told how many there were before."""

    @functools.wraps(original)
    def build_request(self: Any, options: Any, **kwargs: Any) -> Any:
        call, num_resends = _sending.get(), kwargs.get("retries_taken")
        if call is not None and num_resends:
            call.resent(num_resends)
        return original(self, options, **kwargs)

    setattr(build_request, _ORIGINAL, original)
    return build_request


def _failed(call: ModelCall, error: BaseException) -> None:
    """Record `error`, and the answer where the client got one but could not parse it."""
    completion = getattr(error, "completion", None)
    if completion is not None:
        call.respond(completion)
    call.fail(error)


class Recording:
    """One request that is being recorded, and what to do with its answer."""

    def __init__(self, client: Recorder, call: ModelCall, endpoint: Endpoint, raw: str | None) -> None:
        """`raw` is the value of the header by which the client asks itself for a raw response; None without it."""
        self._client = client
        self.call = call
        self._endpoint = endpoint
        self._raw = raw

    def finish(self, result: Any, *, is_streamed: bool) -> Any:
        """Record `result`, or read along while the app reads it; returns what the app gets, the client's own object."""
        if not is_streamed and self._raw is None:
            self.call.respond(result)
            self.call.end()
            return result
        with self._client.shield:
            if self._raw is not None and self._raw != "true":
                self._read_body(result.http_response, is_streamed=is_streamed)
            elif not is_streamed:
                self.call.respond(json.loads(result.http_response.content))
                self.call.end()
            elif self._raw:
                self._read_parsed(result)
            else:
                self._read_stream(result)
        return result

    def _read_parsed(self, response: Any) -> None:
        """Read along once the app parses a raw response, which makes it a stream."""
        parse = response.parse

        @functools.wraps(parse)
        def read(*args: Any, **kwargs: Any) -> Any:
            stream = parse(*args, **kwargs)
            with self._client.shield:
                # Parsing again gives the same stream, which is read along with already.
                if not isinstance(getattr(stream, "_iterator", None), (Reading, AsyncReading)):
                    self._read_stream(stream)
            return stream

        response.parse = read

    def _read_stream(self, stream: Any) -> None:
        """Read along with the app: the stream keeps its type, only its inner iterator is replaced."""
        is_async = hasattr(stream._iterator, "__anext__")
        kind = AsyncReading if is_async else Reading
        reading = kind(stream._iterator, self._client, self.call, self._endpoint.streamed())
        stream._iterator = reading
        end_on_close(stream.response, reading, is_async=is_async)

    def _read_body(self, response: Any, *, is_streamed: bool) -> None:
        """Read along where the app reads the body itself: every way to read it goes through `iter_bytes`."""
        is_async = hasattr(response.stream, "__aiter__")
        answer: StreamedAnswer = StreamedEvents(self._endpoint.streamed()) if is_streamed else WholeBody()
        kind = AsyncReading if is_async else Reading
        reading = kind(None, self._client, self.call, answer, is_streamed=is_streamed)
        name = "aiter_bytes" if is_async else "iter_bytes"
        original = getattr(response, name)

        @functools.wraps(original)
        def iterate(*args: Any, **kwargs: Any) -> Any:
            reading.inner = original(*args, **kwargs)
            return reading

        setattr(response, name, iterate)
        end_on_close(response, reading, is_async=is_async)
