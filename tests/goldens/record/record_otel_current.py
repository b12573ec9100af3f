"""opentelemetry-instrumentation-genai-openai: the GenAI conventions as they are, content on the span."""

import os

os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "SPAN_ONLY"
os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"

from conversation import converse, lookup_card, openai_client, tracer_provider
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.util.genai.handler import get_telemetry_handler

provider = tracer_provider()
OpenAIInstrumentor().instrument(tracer_provider=provider)


def tool(**arguments):
    """As the conventions' own helper records a tool, for frameworks that run it."""
    with get_telemetry_handler(tracer_provider=provider).tool("lookup_card", tool_type="function") as invocation:
        invocation.tool_call_id, invocation.arguments = "call_1", arguments
        invocation.tool_result = lookup_card(**arguments)
    return invocation.tool_result


converse(openai_client().chat.completions.create, tool=tool)
provider.shutdown()
