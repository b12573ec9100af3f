"""A simulated human agent: says which queue a ticket finally went to, for most tickets, and sometimes wrongly."""

from __future__ import annotations

import random
from collections.abc import Sequence

from router import Routed

import nightschool

ANSWERS = 0.70  # share of tickets that the agent reviews
ERRS = 0.03  # share of those that get a wrong queue


class Agent:
    """One tenant's agent."""

    def __init__(self, queues: Sequence[str], seed: str) -> None:
        self._queues, self._random = list(queues), random.Random(seed)

    def review(self, routed: Routed) -> bool:
        """Say where the ticket finally went, if the agent reviews it; True if an outcome was recorded."""
        answers, errs, wrong = self._random.random() < ANSWERS, self._random.random() < ERRS, self._random.choice(self._queues)
        if not answers:
            return False
        final = wrong if errs else routed.ticket.queue
        nightschool.outcome("queue", final_text=final, response_id=routed.response_id, rater="agent-1")
        return True
