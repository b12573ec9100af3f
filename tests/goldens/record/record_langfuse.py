"""langfuse: its OpenAI integration, which exports by OTLP to the address of a Langfuse server."""

import os

os.environ["LANGFUSE_HOST"] = os.environ["LANGFUSE_BASE_URL"] = os.environ["GOLDEN_URL"]
os.environ["LANGFUSE_PUBLIC_KEY"] = os.environ["LANGFUSE_SECRET_KEY"] = "unused"

from conversation import SESSION, USER, converse, lookup_card, model_url
from langfuse import get_client, observe, propagate_attributes
from langfuse.openai import openai

langfuse = get_client()
client = openai.OpenAI(base_url=model_url(), api_key="unused", max_retries=0)
with propagate_attributes(session_id=SESSION, user_id=USER):
    converse(
        client.chat.completions.create,
        request=lambda name: langfuse.start_as_current_observation(name=name, as_type="span"),
        tool=observe(as_type="tool")(lookup_card),
    )
langfuse.shutdown()
