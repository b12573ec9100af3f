"""The reference: what nightschool's own tracer records."""

import os

from conversation import SESSION, USER, converse, openai_client

import nightschool

nightschool.configure(endpoint=os.environ["GOLDEN_URL"], tenant="acme", api_key="k", subject_key="golden")
nightschool.instrument_openai()
converse(
    openai_client().chat.completions.create,
    request=lambda name: nightschool.request(task=name, user=USER, conversation=SESSION),
)
assert nightschool.flush()
