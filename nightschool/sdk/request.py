"""A request of the app: what it marks, which one is current, and how a function of any kind runs inside one."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

from opentelemetry.context import get_current
from opentelemetry.trace import format_trace_id, get_current_span

from nightschool import semconv
from nightschool.errors import RecordError
from nightschool.outcomes.fields import parse_target
from nightschool.sdk.recorder import Recorder
from nightschool.sdk.shield import Shield, is_strict
from nightschool.sdk.span import SpanRecord

P = ParamSpec("P")
R = TypeVar("R")

_current: ContextVar[Request | None] = ContextVar("nightschool_request", default=None)


def current_request() -> Request | None:
    """The request this thread or task is working on."""
    return _current.get()


def request_of(client: Recorder) -> Request | None:
    """The same, if `client` records it; None for a request of another client, which may be another tenant's."""
    request = _current.get()
    return request if request is not None and request.client is client else None


class Request:
    """One request of the app: a context manager and a decorator.

    Model calls inside it belong to it: in this thread, in asyncio tasks, and in threads that carry the context over
    (`asyncio.to_thread`, `contextvars.copy_context().run`, or `with request.attached()`). Decorate a generator instead
    of opening the block inside it, because a generator runs in the context of the code that reads it.
    """

    def __init__(
        self,
        client_of: Callable[[], Recorder],
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
        self.client: Recorder | None = None
        self.span: SpanRecord | None = None
        """None when nothing is recorded."""
        self.stamps: Mapping[str, Any] = {}
        """The attributes of every span below. Replaced, never changed in place: spans keep a reference to it."""
        self.captures_content = True
        self.response_id: str | None = None
        """`gen_ai.response.id` of the newest model call: the best target of an outcome."""

    @property
    def trace_id(self) -> str | None:
        """32 hex digits; None when nothing is recorded."""
        return format_trace_id(self.span.trace_id) if self.span else None

    def identify(self, *, user: object = None, conversation: object = None) -> None:
        """Name the user or the conversation, once that is known."""
        if self.client is not None and self.span is not None:
            with self.client.shield:
                late = self.client.stamps(user=user, conversation=conversation)
                self.stamps = {**self.stamps, **late}
                self.span.late = {**(self.span.late or {}), **late}

    def tag_join(self, ns: str, id: object) -> None:  # noqa: A002 - what the wire calls it
        """Give the request an id of the app's own, as `tag_join("ticket", "T-42")`; an outcome may then name that id.

        It may be called at any time, also after the request has ended.
        """
        client, span = self.client, self.span
        if client is None or span is None:
            return
        with client.shield:
            key = _checked_join_key(client.shield, ns, id)
            if key is None:
                return
            tag = {f"{semconv.JOIN_KEY_PREFIX}{key['ns']}": key["id"]}
            if span.ended_ns:  # the span is already in the exporter, so the tag goes in a span of its own
                client.end_span(client.start_span("nightschool.tag_join", {**self.stamps, **tag}, parent=span))
            else:
                self.stamps = {**self.stamps, **tag}
                span.late = {**(span.late or {}), **tag}

    @contextlib.contextmanager
    def attached(self) -> Iterator[Self]:
        """Work on this request in a thread that was started without the context."""
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
        """Start the span, without making this the current request; `attached` does that for a piece of work."""
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
                # Only an `Exception` is a failure. A generator that is left early, a cancelled task and the end of the
                # app are not.
                if isinstance(error, Exception):
                    span.fail(error)
                client.end_span(span)
            except Exception as ours:
                client.shield.caught(ours)

    def _start(self, client: Recorder) -> None:
        outer = request_of(client)
        captures = self._captures(client, outer)
        stamps = client.stamps(**self._marks, captures_content=captures)
        if outer is not None:
            stamps = {**outer.stamps, **stamps}
            if captures:
                stamps.pop(semconv.CONTENT_CAPTURE, None)
        task = stamps.get(semconv.TASK, "")
        span = client.start_span(f"invoke_workflow {task}", stamps, parent=outer.span if outer is not None else None)
        span.attributes = {semconv.GEN_AI_OPERATION_NAME: "invoke_workflow", semconv.GEN_AI_WORKFLOW_NAME: task}
        if outer is None and (context := get_current()):  # empty, hence false, without a span of the app
            app_span = get_current_span(context).get_span_context()
            if app_span.is_valid:
                span.link = app_span
        self.stamps, self.captures_content, self.span = stamps, captures, span

    def _captures(self, client: Recorder, outer: Request | None) -> bool:
        """What this request was told itself, else what its task was; False inside a request that keeps content out."""
        if self._capture_content is not None:
            return self._capture_content
        return (outer is None or outer.captures_content) and client.captures_content(str(self._marks["task"]))

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make every call of `function` a request: a plain or async function, or a generator of either kind."""

        def new_request() -> Request:
            return Request(self._client_of, **self._marks, capture_content=self._capture_content)

        return cast("Callable[P, R]", _wrap(cast("Callable[..., Any]", function), new_request))


def _checked_join_key(shield: Shield, ns: object, id: object) -> dict[str, str] | None:  # noqa: A002
    """A join key as outcomes write it; None, and a line in the log, for one that no outcome could name."""
    try:
        return parse_target({"join_key": {"ns": ns, "id": str(id)}})["join_key"]  # type: ignore[no-any-return]
    except RecordError as error:
        shield.log_once(f"a request is not tagged: {error}")
        if is_strict(default=False):
            raise
        return None


def _wrap(function: Callable[..., Any], request: Callable[[], Request]) -> Callable[..., Any]:
    """`function`, of whatever kind, so that each call runs inside a new request."""

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


# A generator runs in the context of the code that reads it. So the request is current only while the generator itself
# runs. If it were current from the first item to the last, the reader's own work would be in it too, and all of it from
# then on if the reader leaves the generator early.
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
        # A generator that another thread or task finishes ends in a context that never had this token: there is nothing
        # to undo.
        return
