"""Step 6 of a night: held-out prompts answered by the base model, the current release and the candidate, as production asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nightschool_nightly.examples.example import Example
from nightschool_nightly.rewards.rubric import Rubric
from nightschool_nightly.rollouts.engine import Ask
from nightschool_nightly.training.trainer import Sampler, seed_of


@dataclass(frozen=True, slots=True)
class Answers:
    """One policy's answers to the held-out prompts, in their order."""

    policy: str
    """"base", "release" or "candidate"."""
    texts: tuple[str, ...]
    rewards: tuple[float | None, ...]


def answer_holdout(
    policy: str,
    sampler: Sampler,
    save: Callable[[Any], None] | None,
    examples: Sequence[Example],
    rubrics: Mapping[str, Rubric],
    *,
    night: str,
) -> Answers:
    """Answer each held-out prompt once with production's own sampling settings and a seed that all policies share."""
    sampler.use(save)
    asks = [
        Ask(e.prompt_ids, 1, e.max_tokens, e.temperature, seed_of(night, "holdout", e.id), top_p=e.top_p, stop=e.stop)
        for e in examples
    ]
    rollouts = [answers[0] for answers in sampler.sample(asks)]
    rewards = tuple(
        None if e.cut_short and not r.finished else rubrics[e.task].score(r.text, e.references).reward
        for e, r in zip(examples, rollouts, strict=True)
    )
    return Answers(policy, tuple(rollout.text for rollout in rollouts), rewards)
