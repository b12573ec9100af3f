"""What a night found out about its candidate: what the gate decides on and the report shows.

It is a file of its own in the night's folder, because it took minutes of training to make and deciding takes none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from nightschool.errors import NightError
from nightschool_nightly.training.advantage import GroupFate
from nightschool_nightly.training.metrics import StepMetrics


class Contender(StrEnum):
    """A policy that answers the held-out prompts."""

    BASE = "base"
    """The base model without an adapter."""
    RELEASE = "release"
    """What serves now; the candidate was trained on top of it. There is none on a tenant's first night."""
    CANDIDATE = "candidate"
    """What came out of this night."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One policy's answers to the held-out prompts, in their order."""

    policy: Contender
    texts: tuple[str, ...]
    rewards: tuple[float | None, ...]
    """From 0 to 1; None is unscored."""
    cut: tuple[bool, ...]
    """Whether production's limit cut the answer off; it is scored as it is."""

    @property
    def num_unscored(self) -> int:
        """Prompts whose answer has no score."""
        return self.rewards.count(None)


@dataclass(frozen=True, slots=True)
class Alternative:
    """One form of what a night learned, weighed because its last step was over the KL budget (`rescue`)."""

    step: int
    """The adapter after so many steps."""
    share: float
    """The share of the night's change that it holds, 0 to 1."""
    kl: float
    """Forward KL(base || it) on general prompts, nats per token."""
    reward: float | None
    """Mean reward on prompts of some training users; None when no answer could be scored."""
    num_prompts: int
    """How many scored answers that is."""
    chosen: bool
    """Whether it is the candidate that the gate decides on; at most one is."""

    def describe(self) -> str:
        """A line for a person."""
        reward = "no scored answer" if self.reward is None else f"reward {self.reward:.3f} on {self.num_prompts} prompts"
        share = "" if self.share == 1 else f", {self.share:g} of the change"
        return f"step {self.step}{share}: KL {self.kl:.3f}, {reward}{' (chosen)' if self.chosen else ''}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How the training went, and the answers of every policy to the held-out prompts."""

    metrics: tuple[StepMetrics, ...]
    """Of every step, in order."""
    kl: float
    """Forward KL(base || candidate) on general prompts, nats per token."""
    base: Answers
    release: Answers | None
    candidate: Answers
    alternatives: tuple[Alternative, ...] = ()
    """What was weighed, best first, when the last step was over the KL budget; empty when it was not."""

    @property
    def before(self) -> Answers:
        """The answers of what served before this night: the release, or the base model where there is none."""
        return self.release or self.base

    @property
    def has_signal(self) -> bool:
        """Whether any step had a group whose rewards differ; without one nothing was learned."""
        return any(step.groups[GroupFate.KEPT] for step in self.metrics)

    def to_json(self) -> str:
        answers = {
            a.policy: {"texts": a.texts, "rewards": a.rewards, "cut": a.cut}
            for a in (self.base, self.release, self.candidate)
            if a
        }
        alternatives = [asdict(alternative) for alternative in self.alternatives]
        metrics = [step.to_json() for step in self.metrics]
        return json.dumps({"kl": self.kl, "metrics": metrics, "answers": answers, "alternatives": alternatives})

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Read back an evaluation; `NightError` when it is damaged."""
        try:
            raw = json.loads(text)
            answers: Mapping[str, Any] = raw["answers"]
            found = {
                policy: Answers(policy, *(tuple(answers[policy][name]) for name in ("texts", "rewards", "cut")))
                for policy in Contender
                if policy in answers
            }
            return cls(
                metrics=tuple(StepMetrics.from_json(step) for step in raw["metrics"]),
                kl=raw["kl"],
                base=found[Contender.BASE],
                release=found.get(Contender.RELEASE),
                candidate=found[Contender.CANDIDATE],
                alternatives=tuple(Alternative(**each) for each in raw.get("alternatives", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise NightError(
                f"the evaluation of the night cannot be read ({error!r}); start the night without --resume"
            ) from None
