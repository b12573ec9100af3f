"""General prompts: what anybody may ask any model, and what a tenant's night must not unlearn.

They are in `general_prompts.jsonl`, ten families of them. One part of each family measures the finished candidate in
the gate and is never trained with; out of the other part a night chooses its own for the KL term of its loss.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files

from nightschool.errors import NightError
from nightschool_nightly.rollouts.sampler import Sampler, SampleRequest
from nightschool_nightly.training.tree import Sample

_FILE = "general_prompts.jsonl"
# Of each answer. Longer ones say little more: what is forgotten is how an answer begins. docs/night.md has the
# measurements.
_ANSWER_TOKENS = 32


class Use(StrEnum):
    """What a general prompt is for; none is for both."""

    TRAINING = "training"
    """May be part of a night's loss."""
    GATE = "gate"
    """Measures how far a candidate is from the base model. Other prompts are another KL, and another budget."""


@dataclass(frozen=True, slots=True)
class GeneralPrompt:
    """One conversation that a model is to answer."""

    id: str
    family: str
    use: Use
    messages: tuple[Mapping[str, str], ...]
    """Role and content of each, the last one of a user."""


def general_prompts(use: Use) -> tuple[GeneralPrompt, ...]:
    """All prompts for one use, in the order of the file."""
    lines = files(__package__).joinpath(_FILE).read_text(encoding="utf-8").splitlines()
    rows = (json.loads(line) for line in lines)
    return tuple(
        GeneralPrompt(row["id"], row["family"], Use(row["use"]), tuple(row["messages"])) for row in rows if row["use"] == use
    )


def choose_prompts(prompts: Sequence[GeneralPrompt], count: int, *, seed: int) -> list[GeneralPrompt]:
    """`count` of the prompts (all when there are fewer): as many of each family as of any other, give or take one."""
    generator = random.Random(seed)  # noqa: S311 -- a choice that a night repeats, not a secret
    by_family: dict[str, list[GeneralPrompt]] = defaultdict(list)
    for prompt in generator.sample(list(prompts), len(prompts)):
        by_family[prompt.family].append(prompt)
    families = generator.sample(sorted(by_family), len(by_family))
    rounds = range(max((len(family) for family in by_family.values()), default=0))
    dealt = [by_family[family][n] for n in rounds for family in families if n < len(by_family[family])]
    return dealt[:count]


def answer_prompts(sampler: Sampler, prompts: Sequence[tuple[int, ...]], *, seed: int) -> list[Sample]:
    """The base model's own answers to prompts in tokens, sampled at temperature 1 and cut after 32 tokens."""
    sampler.use_adapter(None)
    requests = [SampleRequest(ids, 1, _ANSWER_TOKENS, 1.0, seed + number) for number, ids in enumerate(prompts)]
    rollouts = sampler.sample(requests)
    return [Sample(request.prompt_ids, answers[0].token_ids) for request, answers in zip(requests, rollouts, strict=True)]


@dataclass(frozen=True, slots=True)
class GeneralAnswers:
    """The base model's answers to the general prompts of one night, kept in its folder."""

    training: tuple[Sample, ...]
    gate: tuple[Sample, ...]

    def to_json(self) -> str:
        return json.dumps({use.value: [[s.prompt_ids, s.completion_ids] for s in getattr(self, use)] for use in Use})

    @classmethod
    def from_json(cls, text: str) -> GeneralAnswers:
        """Read back the answers; `NightError` when they are damaged."""
        try:
            raw = json.loads(text)
            found = {use: tuple(Sample(tuple(prompt), tuple(answer)) for prompt, answer in raw[use]) for use in Use}
            return cls(found[Use.TRAINING], found[Use.GATE])
        except (ValueError, KeyError, TypeError) as error:
            raise NightError(
                f"the general answers of the night cannot be read ({error!r}); start the night without --resume"
            ) from None
