"""azure-ai-inference: the conventions up to 1.36, each message an event of the span."""

import os

os.environ["AZURE_TRACING_GEN_AI_CONTENT_RECORDING_ENABLED"] = "true"

from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.tracing import AIInferenceInstrumentor
from azure.core.credentials import AzureKeyCredential
from azure.core.settings import settings
from conversation import converse, model_url, tracer_provider

settings.tracing_implementation = "opentelemetry"
provider = tracer_provider()
AIInferenceInstrumentor().instrument(enable_content_recording=True)
client = ChatCompletionsClient(endpoint=model_url(), credential=AzureKeyCredential("unused"))


def create(**params):
    streaming = params.pop("stream_options", None)
    answer = client.complete(**params, **({"model_extras": {"stream_options": streaming}} if streaming else {}))
    if not streaming:
        for choice in answer.choices:
            for call in choice.message.tool_calls or ():
                call.model_dump = lambda exclude_none, call=call: call.as_dict()
    return answer


converse(create)
provider.shutdown()
