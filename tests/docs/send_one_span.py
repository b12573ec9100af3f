"""Sends one span with OpenTelemetry's own exporter, set up by environment variables alone; prints what became of it."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult


class Printing(OTLPSpanExporter):
    """Says how an export ended."""

    def export(self, spans: list[ReadableSpan]) -> SpanExportResult:  # type: ignore[override]
        result = super().export(spans)
        print(result.name)
        return result


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(Printing()))
with provider.get_tracer("reader").start_as_current_span("chat"):
    pass
provider.shutdown()
