"""OpenLLMetry (traceloop-sdk with its OpenAI instrumentation) before it went to JSON messages: indexed attributes."""

import os

os.environ["TRACELOOP_TELEMETRY"] = "false"

from conversation import SESSION, USER, app_span, converse, lookup_card, openai_client
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from traceloop.sdk import Traceloop
from traceloop.sdk.decorators import tool
from traceloop.sdk.instruments import Instruments

Traceloop.init(
    app_name="help-desk",
    exporter=OTLPSpanExporter(os.environ["GOLDEN_URL"] + "/v1/traces"),
    instruments={Instruments.OPENAI},
)
Traceloop.set_association_properties({"user_id": USER, "session_id": SESSION})
converse(openai_client().chat.completions.create, request=app_span, tool=tool(name="lookup_card")(lookup_card))
trace.get_tracer_provider().shutdown()
