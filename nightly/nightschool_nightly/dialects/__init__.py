"""Spans and events of every dialect, read into one: that of the OpenTelemetry GenAI conventions.

One file a dialect. Raw bytes are kept in the stream and understood here, on read, so that a better reading repairs history.
"""

from nightschool.otlp.attributes import attributes_of
from nightschool_nightly.dialects.call import context_of, finish_reason_of, model_of, request_of, tool_run_of, tools_of, usage_of
from nightschool_nightly.dialects.messages import read_message, read_messages, read_part
from nightschool_nightly.dialects.record import EventRow, SpanRow, read_events, read_logs, read_spans, with_events

__all__ = [
    "EventRow",
    "SpanRow",
    "attributes_of",
    "context_of",
    "finish_reason_of",
    "model_of",
    "read_events",
    "read_logs",
    "read_message",
    "read_messages",
    "read_part",
    "read_spans",
    "request_of",
    "tool_run_of",
    "tools_of",
    "usage_of",
    "with_events",
]
