"""One model call being recorded: a span from the request to the last word of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.trace import Span, Status, StatusCode

from nightschool import chat, semconv

if TYPE_CHECKING:
    from nightschool.tracer import Client, Request

TRACEPARENT = "traceparent"
MAX_DESCRIPTION = 500


def mark_failed(span: Span, error: BaseException) -> None:
    """Say on `span` that `error` ended it."""
    span.set_attribute(semconv.ERROR_TYPE, type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, str(error)[:MAX_DESCRIPTION]))


class ModelCall:
    """One model call; also a context manager, which records an exception and ends the span.

    Every method is safe in an app: what goes wrong in here is counted and never raised, and nothing happens after the end.
    """

    def __init__(self, client: Client, request: Request | None, span: Span, *, started_ns: int) -> None:
        self._client = client
        self._request = request
        self._span = span
        self._started_ns = started_ns
        self._is_ended = False
        self._has_first_chunk = False

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that make the server's span a part of this trace; empty when nothing is recorded."""
        context = self._span.get_span_context()
        if not context.is_valid:
            return {}
        return {TRACEPARENT: f"00-{context.trace_id:032x}-{context.span_id:016x}-01"}

    def first_chunk(self) -> None:
        """The first piece of a streamed answer is here."""
        with self._client.shield:
            if not self._has_first_chunk:
                self._has_first_chunk = True
                seconds = (self._client.now_ns() - self._started_ns) / 1e9
                self._span.set_attribute(semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, seconds)

    def got_id(self, response_id: str | None) -> None:
        """The answer's id is known; an app may need it before a stream ends."""
        if response_id and self._request:
            self._request.response_id = response_id

    def answer(
        self,
        answer: str | Mapping[str, Any],
        *,
        response_id: str | None = None,
        model: str | None = None,
        finish_reason: str | None = "stop",
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """Record the answer: its text, or a chat message with tool calls."""
        message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        choice = {"message": message, "finish_reason": finish_reason}
        usage = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
        self.respond({"id": response_id, "model": model, "choices": [choice], "usage": usage})

    def respond(self, response: Any) -> None:
        """Record an OpenAI-style chat completion, an object or plain data."""
        with self._client.shield:
            self.got_id(chat.get(response, "id"))
            self._span.set_attributes(chat.response_attributes(response))

    def fail(self, error: BaseException) -> None:
        """Record that `error` came instead of an answer, or in the middle of one, and end."""
        with self._client.shield:
            if not self._is_ended:
                mark_failed(self._span, error)
        self.end()

    def end(self) -> None:
        """End the span; calling it again does nothing."""
        with self._client.shield:
            if not self._is_ended:
                self._is_ended = True
                self._span.end(end_time=self._client.now_ns())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)
        self.end()
