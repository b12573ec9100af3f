"""One model call or one tool call being recorded: a span from the request to the last word of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nightschool import semconv
from nightschool.sdk.openai import chat
from nightschool.sdk.snapshot import freeze
from nightschool.sdk.span import SpanRecord

if TYPE_CHECKING:
    from nightschool.sdk.client import Client
    from nightschool.sdk.request import Request

TRACEPARENT = "traceparent"


class ModelCall:
    """One model call; also a context manager, which records an exception and ends the span.

    Every method is safe in an app: what goes wrong in here is counted and never raised, and nothing happens after the end.
    """

    def __init__(self, client: Client, request: Request | None, span: SpanRecord | None, *, captures_content: bool) -> None:
        self._client = client
        self._request = request
        self._span = span
        """None when nothing is recorded, and after the end."""
        self._captures_content = captures_content
        self._ids = (span.trace_id, span.span_id) if span is not None else None

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that make the server's span a part of this trace, and tell it when content is not to be recorded.

        Empty when nothing is recorded.
        """
        if self._ids is None:
            return {}
        trace_id, span_id = self._ids
        traceparent = f"00-{trace_id:032x}-{span_id:016x}-01"
        if self._captures_content:
            return {TRACEPARENT: traceparent}
        return {TRACEPARENT: traceparent, semconv.CAPTURE_REQUEST_HEADER: "off"}

    def first_chunk(self) -> None:
        """The first piece of a streamed answer is here."""
        span = self._span
        if span is not None and span.first_chunk_s is None:
            with self._client.shield:
                span.first_chunk_s = (self._client.now_ns() - span.started_ns) / 1e9

    def got_id(self, response_id: str | None) -> None:
        """The answer's id is known; an app may need it before a stream ends."""
        if response_id and self._request:
            self._request.response_id = response_id

    def resent(self, num_resends: int) -> None:
        """The client sent the same request again, `num_resends` times by now."""
        if self._span is not None:
            self._span.num_resends = num_resends

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
        """Record an OpenAI-style answer (of the endpoint that was called), an object or plain data."""
        span = self._span
        if span is None or span.endpoint is None:
            return
        endpoint = span.endpoint
        try:
            picked = endpoint.picked(response, content=self._captures_content)
            if self._request is not None and picked["id"]:
                self._request.response_id = picked["id"]
            frozen = freeze(picked)
            span.answer = endpoint.response_attributes(picked) if frozen is None else frozen
        except Exception as error:
            self._client.shield.caught(error)

    def fail(self, error: BaseException) -> None:
        """Record that `error` came instead of an answer, or in the middle of one, and end."""
        with self._client.shield:
            if self._span is not None:
                self._span.fail(error)
        self.end()

    def end(self) -> None:
        """End the span; calling it again does nothing."""
        span = self._span
        if span is not None:
            self._span = None
            try:
                self._client.end_span(span)
            except Exception as error:
                self._client.shield.caught(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)
        self.end()


class ToolCall:
    """One run of a tool; a context manager, which records an exception and ends the span."""

    def __init__(self, client: Client, span: SpanRecord | None, *, captures_content: bool) -> None:
        self._client = client
        self._span = span
        self._captures_content = captures_content

    def result(self, result: Any) -> None:
        """Record what the tool answered, anything JSON can say."""
        span = self._span
        if span is not None and self._captures_content:
            with self._client.shield:
                text = chat.dump(result)
                span.late = {semconv.GEN_AI_TOOL_CALL_RESULT: text}
                span.num_text_bytes += len(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        span, self._span = self._span, None
        if span is not None:
            with self._client.shield:
                if isinstance(error, Exception):
                    span.fail(error)
                self._client.end_span(span)
