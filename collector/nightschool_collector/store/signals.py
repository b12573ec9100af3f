"""The two signals of OTLP that the collector takes, and what is different between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nightschool import semconv
from nightschool.redaction.otlp import redact_logs, redact_traces
from nightschool.redaction.redactor import Redactor


class Redact(Protocol):
    """Redacts the bytes of a request; with `subjects` raw user ids too. The same object when nothing was found."""

    def __call__(self, redactor: Redactor, raw: bytes, *, subjects: bool = False) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal."""

    name: str
    """As it is counted."""
    topic: str
    """Where its records go."""
    request: type[Message]
    redact: Redact


TRACES = Signal("traces", semconv.TOPIC_SPANS, ExportTraceServiceRequest, redact_traces)
LOGS = Signal("logs", semconv.TOPIC_LOGS, ExportLogsServiceRequest, redact_logs)
