"""opentelemetry-instrumentation-genai-openai: the GenAI conventions as they are, content on the span."""

import os

os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "SPAN_ONLY"
os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"

from conversation import converse, openai_client, tracer_provider
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

provider = tracer_provider()
OpenAIInstrumentor().instrument(tracer_provider=provider)
converse(openai_client().chat.completions.create)
provider.shutdown()
