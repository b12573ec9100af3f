"""One request of the app: what it marks, which of them is current, and how a function of any kind is run inside one."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, cast

from opentelemetry.context import get_current
from opentelemetry.trace import format_trace_id, get_current_span

from nightschool import semconv
from nightschool.sdk.span import SpanRecord

if TYPE_CHECKING:
    from nightschool.sdk.client import Client

P = ParamSpec("P")
R = TypeVar("R")

_current: ContextVar[Request | None] = ContextVar("nightschool_request", default=None)


def current_request() -> Request | None:
    """The request this thread or task is working on."""
    return _current.get()


def is_disabled() -> bool:
    """Whether `NIGHTSCHOOL_DISABLED` turns everything into a no-op."""
    return os.environ.get("NIGHTSCHOOL_DISABLED", "").lower() in ("1", "true", "yes")


class Request:
    """One request of the app: a context manager and a decorator.

    Model calls inside, in this thread, in asyncio tasks and in threads that carry the context over (`asyncio.to_thread`,
    `contextvars.copy_context().run`, or `with request.attached()`), belong to it. A generator should be decorated rather than
    hold the block itself, because a generator's context is its consumer's.
    """

    def __init__(
        self,
        client_of: Callable[[], Client],
        *,
        task: str,
        user: object = None,
        conversation: object = None,
        episode: object = None,
        capture_content: bool | None = None,
    ) -> None:
        self._client_of = client_of
        self._marks: dict[str, Any] = {"task": task, "user": user, "conversation": conversation, "episode": episode}
        self._capture_content = capture_content
        self._token: Token[Request | None] | None = None
        self.client: Client | None = None
        self.span: SpanRecord | None = None
        """None when nothing is recorded."""
        self.stamps: Mapping[str, Any] = {}
        """What every span below carries; never changed in place, spans hold on to it."""
        self.captures_content = True
        self.response_id: str | None = None
        """`gen_ai.response.id` of the newest model call, the best target for an outcome."""

    @property
    def trace_id(self) -> str | None:
        """32 hex digits; None when nothing is recorded."""
        return format_trace_id(self.span.trace_id) if self.span else None

    def identify(self, *, user: object = None, conversation: object = None) -> None:
        """Say who the user is, or which conversation it is, once that is known."""
        if self.client is not None and self.span is not None:
            with self.client.shield:
                late = self.client.stamps(user=user, conversation=conversation)
                self.stamps = {**self.stamps, **late}
                self.span.late = {**(self.span.late or {}), **late}

    def tag_join(self, ns: str, id: object) -> None:  # noqa: A002 - what the wire calls it
        """Give the request a name of the app's own, as `tag_join("ticket", "T-42")`; outcomes may then name that.

        May come at any time, also when the request is over.
        """
        client, span = self.client, self.span
        if client is None or span is None:
            return
        with client.shield:
            key = client.checked_join_key(ns, id)
            if key is None:
                return
            tag = {f"{semconv.JOIN_KEY_PREFIX}{key['ns']}": key["id"]}
            if span.ended_ns:  # it is on its way already: the tag goes as a span of its own
                client.end_span(client.start_span("nightschool.tag_join", {**self.stamps, **tag}, parent=self))
            else:
                self.stamps = {**self.stamps, **tag}
                span.late = {**(span.late or {}), **tag}

    @contextlib.contextmanager
    def attached(self) -> Iterator[Self]:
        """Work on this request in another thread, one that was started without the context."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _detach(token)

    def __enter__(self) -> Self:
        self.open()
        self._token = _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        token, self._token = self._token, None
        if token is not None:
            _detach(token)
        self.close(error)

    def open(self) -> None:
        """Start the span without making this the current request; `attached` does that, piece by piece."""
        client = self._client_of()
        self.client = client
        if client.is_enabled:
            try:
                self._start(client)
            except Exception as error:
                client.shield.caught(error)

    def close(self, error: BaseException | None = None) -> None:
        """End the span."""
        client, span = self.client, self.span
        if client is not None and span is not None and not span.ended_ns:
            try:
                # Not a failure: a consumer that stopped listening to a generator, a cancelled task, the app being stopped.
                if isinstance(error, Exception):
                    span.fail(error)
                client.end_span(span)
            except Exception as ours:
                client.shield.caught(ours)

    def _start(self, client: Client) -> None:
        outer = client._current_request()
        captures = self._captures(client, outer)
        stamps = client.stamps(**self._marks, captures_content=captures)
        if outer is not None:
            stamps = {**outer.stamps, **stamps}
            if captures:
                stamps.pop(semconv.CONTENT_CAPTURE, None)
        task = stamps.get(semconv.TASK, "")
        span = client.start_span(f"invoke_workflow {task}", stamps, parent=outer)
        span.attributes = {semconv.GEN_AI_OPERATION_NAME: "invoke_workflow", semconv.GEN_AI_WORKFLOW_NAME: task}
        if outer is None and (context := get_current()):  # without a span of the app this context is empty
            app_span = get_current_span(context).get_span_context()
            if app_span.is_valid:
                span.link = app_span
        self.stamps, self.captures_content, self.span = stamps, captures, span

    def _captures(self, client: Client, outer: Request | None) -> bool:
        """What this request says itself, else what its task says; inside a request that keeps content out, it stays out."""
        if self._capture_content is not None:
            return self._capture_content
        return (outer is None or outer.captures_content) and client.captures_content(str(self._marks["task"]))

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Mark every call of `function`: plain, async, or a generator of either kind."""

        def again() -> Request:
            return Request(self._client_of, **self._marks, capture_content=self._capture_content)

        return cast("Callable[P, R]", _wrap(cast("Callable[..., Any]", function), again))


def _wrap(function: Callable[..., Any], request: Callable[[], Request]) -> Callable[..., Any]:
    """`function` run inside a new request each time, whatever kind of function it is."""

    @functools.wraps(function)
    async def in_async_generator(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for item in _stepwise_async(request(), function(*args, **kwargs)):
            yield item

    @functools.wraps(function)
    async def in_coroutine(*args: Any, **kwargs: Any) -> Any:
        with request():
            return await function(*args, **kwargs)

    @functools.wraps(function)
    def in_generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        return (yield from _stepwise(request(), function(*args, **kwargs)))

    @functools.wraps(function)
    def in_call(*args: Any, **kwargs: Any) -> Any:
        with request():
            return function(*args, **kwargs)

    if inspect.isasyncgenfunction(function):
        return in_async_generator
    if inspect.iscoroutinefunction(function):
        return in_coroutine
    return in_generator if inspect.isgeneratorfunction(function) else in_call


# A generator runs in its consumer's context. The request is current only during its own steps; were it current from the
# first to the last, the consumer would be in it too, and stay there for ever after leaving the generator halfway.
def _stepwise(request: Request, inner: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    step = functools.partial(inner.send, None)
    with _opened(request), contextlib.closing(inner):
        while True:
            with request.attached():
                try:
                    item = step()
                except StopIteration as stop:
                    return stop.value
            try:
                step = functools.partial(inner.send, (yield item))
            except Exception as error:
                step = functools.partial(inner.throw, error)


async def _stepwise_async(request: Request, inner: AsyncGenerator[Any, Any]) -> AsyncIterator[Any]:
    with _opened(request):
        async with contextlib.aclosing(inner):
            while True:
                with request.attached():
                    try:
                        item = await anext(inner)
                    except StopAsyncIteration:
                        return
                yield item


@contextlib.contextmanager
def _opened(request: Request) -> Iterator[None]:
    request.open()
    try:
        yield
    except BaseException as error:
        request.close(error)
        raise
    request.close()


def _detach(token: Token[Request | None]) -> None:
    try:
        _current.reset(token)
    except ValueError:
        # A block inside a generator that another thread or task finishes ends in a context without our token: nothing to undo.
        return
