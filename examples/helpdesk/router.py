"""The app: a help desk that asks a small model which queue a customer's message belongs to.

The code of an app that uses nightschool looks like this. Three lines of it are nightschool's: `configure` and
`instrument_openai`, which `demo.py` calls, and the `request` around a call. The rest is the official openai client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import openai

import nightschool

MAX_TOKENS = 6


@dataclass(frozen=True)
class Ticket:
    """A customer's message, and the queue a competent agent would finally choose (which the app never sees)."""

    id: str
    day: int
    user: str
    text: str
    queue: str


@dataclass(frozen=True)
class Routed:
    """What the model answered, and which release answered."""

    ticket: Ticket
    answer: str
    response_id: str
    release: str

    @property
    def is_right(self) -> bool:
        return self.answer.strip().lower() == self.ticket.queue


class Router:
    """Routes one tenant's tickets through the serving endpoint."""

    def __init__(self, base_url: str, api_key: str, queues: Sequence[str], examples: Sequence[Ticket]) -> None:
        self._client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=5, timeout=120)
        self._prompt = [
            {
                "role": "system",
                "content": f"You are a router. Reply with one word, the queue for the message: {', '.join(queues)}.",
            }
        ]
        for example in examples:
            self._prompt += [{"role": "user", "content": example.text}, {"role": "assistant", "content": example.queue}]

    def route(self, ticket: Ticket, *, model: str = "nightschool") -> Routed:
        """Ask for the queue of one ticket."""
        with nightschool.request(task="triage", user=ticket.user, conversation=ticket.id):
            raw = self._client.chat.completions.with_raw_response.create(
                model=model,
                messages=[*self._prompt, {"role": "user", "content": ticket.text}],  # type: ignore[list-item]
                max_tokens=MAX_TOKENS,
                temperature=0,
            )
        completion = raw.parse()
        return Routed(ticket, completion.choices[0].message.content or "", completion.id, raw.headers["x-nightschool-release"])
