"""Steps 3 to 5 of a night: sample, score, learn; forty times. Resumes from a checkpoint to the same bytes.

One step is: the adapter hot-loaded into vLLM, G rollouts for each prompt, the human's answers joined, rewards, advantages, the
batch packed as one token tree, one optimizer step. What a step does depends on the manifest, the step's number and the adapter,
and on nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from nightschool.config.settings import NightConfig
from nightschool.errors import NightError
from nightschool_nightly.examples.example import Example
from nightschool_nightly.rewards.reward import Group, score_group
from nightschool_nightly.rewards.rubric import Rubric
from nightschool_nightly.rollouts.engine import Ask, Rollout
from nightschool_nightly.training.advantage import GroupFate, group_advantages
from nightschool_nightly.training.loss import LossFigures, MemberTerms, policy_loss
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, pack_tree

_MAX_TREE_TOKENS = 4096  # a larger batch is split into several trees, with the same gradient
_CLIP_NORM = 1.0


class Sampler(Protocol):
    """What training needs of `rollouts.RolloutEngine`."""

    def use(self, save: Callable[[Any], None] | None) -> None: ...

    def sample(self, asks: Sequence[Ask]) -> list[list[Rollout]]: ...


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What one step did."""

    step: int
    reward_mean: float | None
    """Mean reward of the scored rollouts, the human's answers not counted; None when nothing could be scored."""
    success: float | None
    """Share of scored rollouts with the full reward."""
    num_rollouts: int
    num_unscored: int
    num_demonstrations: int
    groups: Mapping[str, int]
    """Groups by fate."""
    entropy: float | None
    """Mean entropy behind the trained tokens, nats."""
    mismatch: float | None
    """Mean |trainer - sampler| log-probability of sampled tokens, nats."""
    truncated_weights: int
    members_left_out: int
    tree_tokens: int
    """Tokens computed in the training forward."""
    padded_tokens: int
    """Tokens that padded rows would have taken for the same members."""
    grad_norm: float | None
    """Before clipping; None when the step changed nothing."""
    kl: float | None
    """Forward KL to the base on general prompts, where it was measured."""


class Trainer:
    """The policy, its optimizer, and one step at a time."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        *,
        settings: NightConfig,
        rubrics: Mapping[str, Rubric],
        night: str,
        demonstrate: Callable[[str], tuple[int, ...]],
    ) -> None:
        self.policy, self.sampler, self.settings, self.rubrics = policy, sampler, settings, rubrics
        self._night, self._demonstrate = night, demonstrate
        self.optimizer = torch.optim.AdamW(
            list(policy.parameters.values()), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )

    def step(self, number: int, examples: Sequence[Example]) -> StepFigures:
        """Sample, score and learn from one batch of prompts."""
        self.sampler.use(self.policy.save)
        asks = [self._ask(number, example) for example in examples]
        groups = [
            score_group(example, rollouts, self.rubrics[example.task], self._demonstration(example))
            for example, rollouts in zip(examples, self.sampler.sample(asks), strict=True)
        ]
        advantages = group_advantages(
            [[member.reward for member in group.members] for group in groups], negative_weight=self.settings.negative_weight
        )
        kept = [
            (group, values)
            for group, values, fate in zip(groups, advantages.values, advantages.fates, strict=True)
            if fate is GroupFate.KEPT
        ]
        learnt = self._learn(number, kept) if len(kept) >= self.settings.min_groups else _Learnt()
        return _figures(number, groups, advantages.fates, learnt)

    def _ask(self, number: int, example: Example) -> Ask:
        return Ask(
            prompt_ids=example.prompt_ids,
            num_samples=self.settings.group_size,
            max_tokens=example.max_tokens,
            temperature=self.settings.temperature,
            seed=seed_of(self._night, "rollout", str(number), example.id),
            stop=example.stop,
        )

    def _demonstration(self, example: Example) -> tuple[int, ...] | None:
        if example.demonstration is None:
            return None
        ids = self._demonstrate(example.demonstration)
        return ids if len(ids) <= example.max_tokens else None

    def _learn(self, number: int, kept: Sequence[tuple[Group, Sequence[float | None]]]) -> _Learnt:
        batches = list(_batches(kept))
        total = sum(len(sample.completion_ids) for samples, _ in batches for sample in samples)
        learnt = _Learnt()
        if not total:
            return learnt
        for samples, terms in batches:
            tree = pack_tree(samples)
            logprobs_N, entropy_N = self.policy.tree_logprobs(tree, temperature=self.settings.temperature)
            loss, figures = policy_loss(logprobs_N, tree.lengths, terms, total_tokens=total)
            if not torch.isfinite(loss):
                raise NightError(f"the loss of step {number} is {loss.item()}; nothing was published, serving is as it was")
            loss.backward()  # type: ignore[no-untyped-call]
            learnt.add(figures, float(entropy_N.sum()), len(entropy_N), len(tree), tree.padded_tokens)
        parameters = list(self.policy.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
        if not torch.isfinite(norm):
            raise NightError(f"the gradient of step {number} has norm {norm.item()}; nothing was published, serving is as it was")
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * min(1.0, (number + 1) / max(1, self.settings.warmup_steps))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        learnt.grad_norm = float(norm)
        return learnt

    # --- checkpoint -----------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, torch.Tensor]:
        """Adapter and optimizer state in fp32, as one flat dictionary of tensors."""
        tensors = {f"adapter/{name}": tensor for name, tensor in self.policy.state().items()}
        for name, parameter in self.policy.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{name}"] = value.detach().clone()
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go back to a state; the next step is then the same as if nothing had happened."""
        self.optimizer.state.clear()
        for name, parameter in self.policy.parameters.items():
            parameter.data.copy_(tensors[f"adapter/{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"adam/step/{name}" in tensors:
                self.optimizer.state[parameter] = {key: tensors[f"adam/{key}/{name}"].clone() for key in keys}


@dataclass(slots=True)
class _Learnt:
    """Sums over the trees of one step."""

    mismatch: float = 0.0
    sampled_tokens: int = 0
    truncated: int = 0
    left_out: int = 0
    entropy: float = 0.0
    tokens: int = 0
    tree_tokens: int = 0
    padded_tokens: int = 0
    grad_norm: float | None = None

    def add(self, figures: LossFigures, entropy: float, tokens: int, tree_tokens: int, padded_tokens: int) -> None:
        self.mismatch += figures.mismatch_sum
        self.sampled_tokens += figures.mismatch_tokens
        self.truncated += figures.truncated_tokens
        self.left_out += figures.members_left_out
        self.entropy += entropy
        self.tokens += tokens
        self.tree_tokens += tree_tokens
        self.padded_tokens += padded_tokens


def _batches(kept: Sequence[tuple[Group, Sequence[float | None]]]) -> Iterator[tuple[list[Sample], list[MemberTerms]]]:
    """Members that take part, in trees of bounded size; a group is never split."""
    samples: list[Sample] = []
    terms: list[MemberTerms] = []
    size = 0
    for group, values in kept:
        taking_part = [(m, a) for m, a in zip(group.members, values, strict=True) if a and m.token_ids]
        needs = len(group.example.prompt_ids) + sum(len(member.token_ids) for member, _ in taking_part)
        if samples and size + needs > _MAX_TREE_TOKENS:
            yield samples, terms
            samples, terms, size = [], [], 0
        samples += [Sample(group.example.prompt_ids, member.token_ids) for member, _ in taking_part]
        terms += [MemberTerms(advantage, member.sampler_logprobs) for member, advantage in taking_part]
        size += needs
    if samples:
        yield samples, terms


def _figures(number: int, groups: Sequence[Group], fates: Sequence[GroupFate], learnt: _Learnt) -> StepFigures:
    rollouts = [member for group in groups for member in group.rollouts]
    rewards = [member.reward for member in rollouts if member.reward is not None]
    counts = Counter(fates)
    return StepFigures(
        step=number,
        reward_mean=math.fsum(rewards) / len(rewards) if rewards else None,
        success=sum(reward >= 1 for reward in rewards) / len(rewards) if rewards else None,
        num_rollouts=len(rollouts),
        num_unscored=len(rollouts) - len(rewards),
        num_demonstrations=sum(len(group.members) - len(group.rollouts) for group in groups),
        groups={fate.value: counts[fate] for fate in GroupFate},
        entropy=learnt.entropy / learnt.tokens if learnt.tokens else None,
        mismatch=learnt.mismatch / learnt.sampled_tokens if learnt.sampled_tokens else None,
        truncated_weights=learnt.truncated,
        members_left_out=learnt.left_out,
        tree_tokens=learnt.tree_tokens,
        padded_tokens=learnt.padded_tokens,
        grad_norm=learnt.grad_norm,
        kl=None,
    )


def seed_of(*parts: str) -> int:
    """A 31-bit seed out of names."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big") >> 1


def schedule(examples: Sequence[Example], *, night: str, steps: int, prompts_per_step: int) -> list[list[Example]]:
    """Which prompts each step samples: passes over all of them, each in an order of its own."""
    generator = random.Random(seed_of(night, "schedule"))  # noqa: S311 -- a schedule, not a secret
    queue: list[Example] = []
    batches = []
    for _ in range(steps):
        while len(queue) < min(prompts_per_step, len(examples)):
            queue += generator.sample(list(examples), len(examples))
        size = min(prompts_per_step, len(examples))
        batch, queue = queue[:size], queue[size:]
        # A pass may begin inside a batch; the same prompt twice in one batch would be one group counted twice.
        batches.append(list({example.id: example for example in batch}.values()))
    return batches


def with_kl(figures: StepFigures, kl: float) -> StepFigures:
    """The figures with the KL measured after the step."""
    return StepFigures(**{**asdict(figures), "kl": kl})
