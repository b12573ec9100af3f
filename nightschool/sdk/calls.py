"""A model call or a tool call while it is recorded: one span, from the request to the end of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from nightschool import semconv
from nightschool.sdk.endpoints import chat
from nightschool.sdk.endpoints.table import CHAT, Endpoint
from nightschool.sdk.recorder import Recorder
from nightschool.sdk.request import Request, request_of
from nightschool.sdk.snapshot import take_snapshot
from nightschool.sdk.span import SpanRecord

TRACEPARENT = "traceparent"


class ModelCall:
    """One model call; also a context manager, which records an exception and ends the span.

    No method raises an error of ours into the app: such errors are counted. After the end, no method does anything.
    """

    def __init__(self, client: Recorder, request: Request | None, span: SpanRecord | None, *, captures_content: bool) -> None:
        self._client = client
        self._request = request
        self._span = span
        """None when nothing is recorded, and after the end."""
        self._captures_content = captures_content
        self._ids = (span.trace_id, span.span_id) if span is not None else None

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers for the request; empty when nothing is recorded.

        They put the server's span into this trace, and tell the server when content is not to be recorded.
        """
        if self._ids is None:
            return {}
        trace_id, span_id = self._ids
        traceparent = f"00-{trace_id:032x}-{span_id:016x}-01"
        if self._captures_content:
            return {TRACEPARENT: traceparent}
        return {TRACEPARENT: traceparent, semconv.CAPTURE_REQUEST_HEADER: "off"}

    def first_chunk(self) -> None:
        """Record that the first piece of a streamed answer has come."""
        span = self._span
        if span is not None and span.first_chunk_s is None:
            with self._client.shield:
                span.first_chunk_s = (self._client.now_ns() - span.started_ns) / 1e9

    def got_id(self, response_id: str | None) -> None:
        """Record the id of the answer; an app may need it before a stream ends."""
        if response_id and self._request:
            self._request.response_id = response_id

    def resent(self, num_resends: int) -> None:
        """Record that the client has sent the request again, `num_resends` times so far."""
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
        """Record an answer as the endpoint that was called gives it, an object or plain data."""
        span = self._span
        if span is None or span.endpoint is None:
            return
        endpoint = span.endpoint
        try:
            picked = endpoint.picked(response, content=self._captures_content)
            if self._request is not None and picked["id"]:
                self._request.response_id = picked["id"]
            snapshot = take_snapshot(picked)
            span.answer = endpoint.response_attributes(picked) if snapshot is None else snapshot
        except Exception as error:
            self._client.shield.caught(error)

    def fail(self, error: BaseException) -> None:
        """Record that `error` came in place of an answer, or in the middle of one, and end the span."""
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

    def __init__(self, client: Recorder, span: SpanRecord | None, *, captures_content: bool) -> None:
        self._client = client
        self._span = span
        self._captures_content = captures_content

    def result(self, result: Any) -> None:
        """Record what the tool returned: anything that JSON can carry, the rest as its text."""
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


def start_model_call(
    client: Recorder,
    params: Mapping[str, Any],
    *,
    provider: str,
    server: tuple[str, int | None] | None = None,
    endpoint: Endpoint = CHAT,
) -> ModelCall:
    """Start recording a request to `endpoint` with the parameters `params`; `server` is its host and port."""
    request = request_of(client)
    captures = request.captures_content if request is not None else client.captures_content("")
    span: SpanRecord | None = None
    if client.is_enabled:
        try:
            fields = endpoint.fields_and_content if captures else endpoint.fields
            taken = {name: value for name, value in params.items() if name in fields}
            if captures and (unknown := params.keys() - fields - semconv.NEUTRAL_PARAMETERS):
                # What they do is not known; that they were set is, and a night must not sample without them.
                taken |= {name: chat.SET for name in sorted(unknown) if params[name] is not None}
            snapshot = take_snapshot(taken)
            kept = endpoint.request_attributes(taken) if snapshot is None else snapshot
            stamps = request.stamps if request is not None else client.stamps(captures_content=captures)
            parent = request.span if request is not None else None
            span = client.start_span(f"{endpoint.operation} {params.get('model', '')}", stamps, parent=parent)
            span.attributes = {semconv.GEN_AI_OPERATION_NAME: endpoint.operation, semconv.GEN_AI_PROVIDER_NAME: provider}
            span.endpoint, span.request, span.server = endpoint, kept, server
        except Exception as error:
            span = None
            client.shield.caught(error)
    return ModelCall(client, request, span, captures_content=captures)


def start_tool_call(client: Recorder, name: str, arguments: Any, *, call_id: str | None) -> ToolCall:
    """Start recording a run of the tool `name`."""
    request = request_of(client)
    captures = request.captures_content if request is not None else client.captures_content("")
    span: SpanRecord | None = None
    if client.is_enabled:
        with client.shield:
            text = chat.dump(arguments) if captures and arguments is not None else None
            attributes = {
                semconv.GEN_AI_OPERATION_NAME: "execute_tool",
                semconv.GEN_AI_TOOL_NAME: str(name),
                semconv.GEN_AI_TOOL_CALL_ID: call_id,
                semconv.GEN_AI_TOOL_CALL_ARGUMENTS: text,
            }
            stamps = request.stamps if request is not None else client.stamps(captures_content=captures)
            parent = request.span if request is not None else None
            span = client.start_span(f"execute_tool {name}", stamps, parent=parent)
            span.attributes, span.num_text_bytes = chat.compact(attributes), len(text or "")
    return ToolCall(client, span, captures_content=captures)
