"""opentelemetry-instrumentation-openai-v2: the conventions up to 1.36, each message a log record of its own."""

import os

os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "true"

from conversation import converse, logger_provider, openai_client, tracer_provider
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.sdk._events import EventLoggerProvider

provider, logs = tracer_provider(), logger_provider()
OpenAIInstrumentor().instrument(tracer_provider=provider, event_logger_provider=EventLoggerProvider(logs))
converse(openai_client().chat.completions.create)
provider.shutdown()
logs.shutdown()
