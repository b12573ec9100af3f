"""Agent Lightning: its reward and annotation spans, beside model calls that OpenTelemetry's own package records."""

import os

os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "SPAN_ONLY"
os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"

import contextlib

import agentlightning as agl
from agentlightning.tracer import OtelTracer, set_active_tracer
from agentlightning.utils.otel import make_link_attributes
from conversation import app_span, converse, openai_client
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

tracer = OtelTracer()
tracer.init_worker(0)
set_active_tracer(tracer)
provider = trace.get_tracer_provider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(os.environ["GOLDEN_URL"] + "/v1/traces")))
OpenAIInstrumentor().instrument(tracer_provider=provider)


@contextlib.contextmanager
def request(name: str):
    """The app's span; the first conversation ends with rewards of its trace, the second with one linked to its answer."""
    with app_span(name):
        yield
        if name == "card":
            agl.emit_reward({"task_completion": 1.0, "politeness": 0.5}, primary_key="task_completion")
        else:
            agl.emit_reward(0.25, attributes=make_link_attributes({"gen_ai.response.id": "chatcmpl-3"}))


converse(openai_client().chat.completions.create, request=request)
provider.shutdown()
