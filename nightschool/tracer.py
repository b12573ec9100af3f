"""The tracer: what an app does for one user, recorded as a trace of its own.

A client has its own TracerProvider, always sampling and without attribute limits, and keeps its current span in its own
context variable. The app's OpenTelemetry set-up is neither used nor touched: its sampler cannot drop training data, and its
spans never get one of ours as their parent. A span of the app that is open when a request starts is linked, to be found.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, cast

from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, format_trace_id, get_current_span, set_span_in_context

from nightschool import chat, semconv
from nightschool.calls import ModelCall, mark_failed
from nightschool.delivery import Delivery, parse_endpoint
from nightschool.errors import ConfigError, RecordError
from nightschool.exporter import DEFAULT_MAX_QUEUE_BYTES, Exporter, Stats
from nightschool.keys import subject_of
from nightschool.outcomes import canonical, parse_outcome
from nightschool.release import check_tenant
from nightschool.shield import Shield, is_strict

P = ParamSpec("P")
R = TypeVar("R")

AT_EXIT_TIMEOUT_S = 2.0
UNSET: Any = object()
_current: ContextVar[Request | None] = ContextVar("nightschool_request", default=None)


def current_request() -> Request | None:
    """The request this thread or task is working on."""
    return _current.get()


def is_disabled() -> bool:
    """Whether `NIGHTSCHOOL_DISABLED` turns everything into a no-op."""
    return os.environ.get("NIGHTSCHOOL_DISABLED", "").lower() in ("1", "true", "yes")


class _ToExporter(SpanProcessor):
    """Hands every ended span to the exporter."""

    def __init__(self, exporter: Exporter, shield: Shield) -> None:
        self._exporter = exporter
        self._shield = shield

    def on_end(self, span: ReadableSpan) -> None:
        with self._shield:
            self._exporter.put_span(span)


class Client:
    """Records for one tenant. `nightschool.configure` makes the one that the module's functions use."""

    def __init__(
        self,
        endpoint: str,
        tenant: str,
        *,
        api_key: str,
        subject_key: str | None = None,
        service_name: str | None = None,
        max_queue_bytes: int = DEFAULT_MAX_QUEUE_BYTES,
        enabled: bool = True,
        clock: Callable[[], int] = time.time_ns,
        id_generator: IdGenerator | None = None,
    ) -> None:
        """`subject_key` is the secret behind user pseudonyms, the API key by default; give one to be able to rotate the other.

        With `enabled=False`, or `NIGHTSCHOOL_DISABLED=1` in the environment, nothing is checked, recorded or sent.
        `clock` (nanoseconds since the epoch) and `id_generator` are for tests.
        """
        self.shield = Shield()
        self.now_ns = clock
        self.tenant = tenant
        self._exporter: Exporter | None = None
        if not enabled or is_disabled():
            return
        check_tenant(tenant)
        parse_endpoint(endpoint)
        if not isinstance(api_key, str) or not api_key.isascii() or not api_key.isprintable() or not api_key:
            raise ConfigError("api_key must be the tenant's key, printable ASCII text as `nightschool key` printed it")
        if max_queue_bytes <= 0:
            raise ConfigError(f"max_queue_bytes is {max_queue_bytes}; it must be above 0")
        self._secret = subject_key or api_key
        exporter = Exporter(lambda: Delivery(endpoint, api_key), max_queue_bytes=max_queue_bytes, shield=self.shield)
        self._tracer = _provider(tenant, service_name, id_generator, _ToExporter(exporter, self.shield)).get_tracer("nightschool")
        self._exporter = exporter
        atexit.register(self.shutdown, AT_EXIT_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"<nightschool.Client of tenant {self.tenant!r}, {'on' if self.is_enabled else 'off'}>"

    @property
    def is_enabled(self) -> bool:
        """Whether anything is recorded; if not, every method does nothing."""
        return self._exporter is not None

    # --- recording ------------------------------------------------------------------------------------------------------
    def request(self, *, task: str, user: object = None, conversation: object = None) -> Request:
        """Mark one request of the app; see `nightschool.request`."""
        return Request(lambda: self, task=task, user=user, conversation=conversation)

    def model_call(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        provider: str = "custom",
        tools: Sequence[Mapping[str, Any]] | None = None,
        **params: Any,
    ) -> ModelCall:
        """Record a model call made without the `openai` client; see `nightschool.model_call`."""
        return self.start_call({"model": model, "messages": messages, "tools": tools, **params}, provider=provider)

    def start_call(self, params: Mapping[str, Any], *, provider: str, server: tuple[str, int | None] | None = None) -> ModelCall:
        """Start the span of a chat request given as it is sent."""
        parent = self._current_request()
        span: Span = INVALID_SPAN
        started_ns = 0
        with self.shield:
            started_ns = self.now_ns()
            attributes = {
                semconv.GEN_AI_OPERATION_NAME: "chat",
                semconv.GEN_AI_PROVIDER_NAME: provider,
                **(chat.request_attributes(params) if self.is_enabled else {}),
            }
            if server:
                attributes[semconv.SERVER_ADDRESS] = server[0]
                attributes.update({semconv.SERVER_PORT: server[1]} if server[1] else {})
            name = f"chat {params.get('model', '')}"
            span = self.start_span(name, attributes, parent=parent, started_ns=started_ns, kind=SpanKind.CLIENT)
        return ModelCall(self, parent, span, started_ns=started_ns)

    def outcome(
        self,
        name: str,
        value: Any = UNSET,
        *,
        final_text: str | None = None,
        response_id: str | None = None,
        trace_id: str | None = None,
        conversation_id: str | None = None,
        episode_id: str | None = None,
        join_key: tuple[str, str] | Mapping[str, str] | None = None,
        rater: object = None,
        source: Literal["human", "code", "llm", "system"] = "human",
        comment: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        op: Literal["set", "retract"] = "set",
        occurred_at: datetime | None = None,
        event_id: str | None = None,
    ) -> str | None:
        """Say what happened after an answer; see `nightschool.outcome`."""
        if self._exporter is None:
            return None
        with self.shield:
            body: dict[str, Any] = {"name": name, "op": op, "event_id": event_id or uuid.uuid4().hex}
            body["target"] = self._target(response_id, trace_id, conversation_id, episode_id, join_key)
            body["source"] = {"kind": source, "id": self._pseudonym(rater)}
            body["occurred_at"] = occurred_at.astimezone(UTC).isoformat() if occurred_at else self.now_ns()
            if value is not UNSET:
                body["value"] = value
            if final_text is not None:
                body["edit"] = {"final_text": final_text}
            body |= {"comment": comment} if comment is not None else {}
            body |= {"metadata": dict(metadata)} if metadata is not None else {}
            return self._put_outcome(self._exporter, body)
        return None

    def _put_outcome(self, exporter: Exporter, body: dict[str, Any]) -> str | None:
        try:
            outcome = parse_outcome(body)
            encoded = canonical(outcome.to_json()).encode()
        except (RecordError, TypeError) as error:  # TypeError: metadata that JSON cannot carry
            exporter.count_invalid_outcome()
            self.shield.log_once(f"an outcome is left out: {error}")
            if is_strict(default=False):
                raise
            return None
        exporter.put_outcome(encoded)
        return outcome.event_id

    def _target(
        self,
        response_id: str | None,
        trace_id: str | None,
        conversation_id: str | None,
        episode_id: str | None,
        join_key: tuple[str, str] | Mapping[str, str] | None,
    ) -> dict[str, Any]:
        """The targets given, or the request now worked on when none is."""
        if isinstance(join_key, tuple):
            join_key = dict(zip(("ns", "id"), join_key, strict=True))
        given = {
            "response_id": response_id,
            "trace_id": trace_id,
            "conversation_id": conversation_id,
            "episode_id": episode_id,
            "join_key": dict(join_key) if join_key else None,
        }
        target = {name: value for name, value in given.items() if value is not None}
        request = self._current_request()
        return target or ({"trace_id": request.trace_id} if request else {})

    # --- export ---------------------------------------------------------------------------------------------------------
    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything recorded so far is acknowledged; False when that took longer than `timeout` seconds."""
        return self._exporter.flush(timeout) if self._exporter else True

    def shutdown(self, timeout: float = 10.0) -> bool:
        """Flush and stop; what is not out within `timeout` seconds is dropped and counted. Safe to call again."""
        atexit.unregister(self.shutdown)
        return self._exporter.shutdown(timeout) if self._exporter else True

    def stats(self) -> Stats:
        """What became of everything recorded so far."""
        return self._exporter.stats() if self._exporter else Stats()

    # --- for requests and calls -----------------------------------------------------------------------------------------
    def start_span(
        self,
        name: str,
        attributes: Mapping[str, Any],
        *,
        parent: Request | None,
        started_ns: int,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
    ) -> Span:
        """Start a span below `parent`, or a trace of its own, never below a span of the app."""
        if self._exporter is None:
            return INVALID_SPAN
        stamps = parent.stamps if parent else {semconv.SPAN_SIDE: "app"}
        return self._tracer.start_span(
            name,
            context=parent.context if parent else Context(),
            kind=kind,
            attributes={**stamps, **attributes},
            links=links,
            start_time=started_ns,
        )

    def stamps(self, *, task: object = None, user: object = None, conversation: object = None) -> dict[str, str]:
        """What every span of a request carries."""
        stamps = {semconv.SPAN_SIDE: "app"}
        if task:
            stamps[semconv.TASK] = str(task)
        if user is not None:
            stamps[semconv.SUBJECT] = self._pseudonym(user)
        if conversation is not None:
            stamps[semconv.GEN_AI_CONVERSATION_ID] = str(conversation)
        return stamps

    def _pseudonym(self, user: object) -> str:
        return "" if user is None else subject_of(self._secret, str(user))

    def _current_request(self) -> Request | None:
        request = _current.get()
        return request if request is not None and request.client is self else None


class Request:
    """One request of the app: a context manager and a decorator.

    Model calls inside, in this thread, in asyncio tasks and in threads that carry the context over (`asyncio.to_thread`,
    `contextvars.copy_context().run`, or `with request.attached()`), belong to it. A generator should be decorated rather than
    hold the block itself, because a generator's context is its consumer's.
    """

    def __init__(self, client_of: Callable[[], Client], *, task: str, user: object = None, conversation: object = None) -> None:
        self._client_of = client_of
        self._marks: dict[str, Any] = {"task": task, "user": user, "conversation": conversation}
        self._span: Span = INVALID_SPAN
        self._token: Token[Request | None] | None = None
        self.client: Client | None = None
        self.context = Context()
        self.stamps: dict[str, str] = {}
        self.response_id: str | None = None
        """`gen_ai.response.id` of the newest model call, the best target for an outcome."""

    @property
    def trace_id(self) -> str | None:
        """32 hex digits; None when nothing is recorded."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    def identify(self, *, user: object = None, conversation: object = None) -> None:
        """Say who the user is, or which conversation it is, once that is known."""
        if self.client is not None and self.client.is_enabled:
            with self.client.shield:
                stamps = self.client.stamps(user=user, conversation=conversation)
                self.stamps |= stamps
                self._span.set_attributes(stamps)

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
        if self._token is not None:
            _detach(self._token)
            self._token = None
        self.close(error)

    def open(self) -> None:
        """Start the span without making this the current request; `attached` does that, piece by piece."""
        client = self._client_of()
        self.client = client
        if client.is_enabled:
            with client.shield:
                self._start(client)

    def close(self, error: BaseException | None = None) -> None:
        """End the span."""
        if self.client is not None and self.client.is_enabled:
            with self.client.shield:
                # Not a failure: a consumer that stopped listening to a generator, a cancelled task, the app being stopped.
                if isinstance(error, Exception):
                    mark_failed(self._span, error)
                self._span.end(end_time=self.client.now_ns())

    def _start(self, client: Client) -> None:
        outer = client._current_request()
        self.stamps = {**(outer.stamps if outer else {}), **client.stamps(**self._marks)}
        self.context = outer.context if outer else Context()
        task = self.stamps.get(semconv.TASK, "")
        app_span = get_current_span().get_span_context()
        attributes = {semconv.GEN_AI_OPERATION_NAME: "invoke_workflow", semconv.GEN_AI_WORKFLOW_NAME: task}
        links = [Link(app_span)] if app_span.is_valid and not outer else []
        started_ns = client.now_ns()
        self._span = client.start_span(f"invoke_workflow {task}", attributes, parent=self, started_ns=started_ns, links=links)
        self.context = set_span_in_context(self._span, Context())

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Mark every call of `function`: plain, async, or a generator of either kind."""

        def again() -> Request:
            return Request(self._client_of, **self._marks)

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
    # A block inside a generator that another thread or task finishes ends in a context without our token: nothing to undo.
    with contextlib.suppress(ValueError):
        _current.reset(token)


def _provider(
    tenant: str, service_name: str | None, id_generator: IdGenerator | None, processor: SpanProcessor
) -> TracerProvider:
    """Our own provider, deaf to the environment variables and global providers that tune the app's."""
    unlimited = SpanLimits.UNSET
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        resource=Resource.create({semconv.TENANT_ID: tenant, **({SERVICE_NAME: service_name} if service_name else {})}),
        shutdown_on_exit=False,
        id_generator=id_generator,
        span_limits=SpanLimits(
            max_attributes=unlimited,
            max_span_attributes=unlimited,
            max_attribute_length=unlimited,
            max_span_attribute_length=unlimited,
        ),
        meter_provider=NoOpMeterProvider(),
    )
    provider.add_span_processor(processor)
    return provider
