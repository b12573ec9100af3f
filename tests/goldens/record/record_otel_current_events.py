"""opentelemetry-instrumentation-genai-openai: content not on the span but in `gen_ai.client.inference.operation.details`."""

import os

os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "EVENT_ONLY"
os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"

from conversation import converse, logger_provider, openai_client, tracer_provider
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

provider, logs = tracer_provider(), logger_provider()
OpenAIInstrumentor().instrument(tracer_provider=provider, logger_provider=logs)
converse(openai_client().chat.completions.create)
provider.shutdown()
logs.shutdown()
