"""openinference-instrumentation-openai, with the user and the session that its context managers add."""

from conversation import SESSION, USER, converse, lookup_card, openai_client, tracer_provider
from openinference.instrumentation import OITracer, TraceConfig, using_attributes
from openinference.instrumentation.openai import OpenAIInstrumentor

provider = tracer_provider()
OpenAIInstrumentor().instrument(tracer_provider=provider)
with using_attributes(session_id=SESSION, user_id=USER):
    tracer = OITracer(provider.get_tracer("help-desk"), config=TraceConfig())
    converse(openai_client().chat.completions.create, tool=tracer.tool(lookup_card))
provider.shutdown()
