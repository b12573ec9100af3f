"""openinference-instrumentation-openai, with the user and the session that its context managers add."""

from conversation import SESSION, USER, converse, openai_client, tracer_provider
from openinference.instrumentation import using_attributes
from openinference.instrumentation.openai import OpenAIInstrumentor

provider = tracer_provider()
OpenAIInstrumentor().instrument(tracer_provider=provider)
with using_attributes(session_id=SESSION, user_id=USER):
    converse(openai_client().chat.completions.create)
provider.shutdown()
