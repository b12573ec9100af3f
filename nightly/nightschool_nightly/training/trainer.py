"""Steps 3 to 5 of a night: sample, score, learn; forty times. Resumes from a checkpoint to the same bytes.

One step is: the adapter hot-loaded into vLLM, G rollouts for each prompt, the human's answers joined, rewards, advantages, the
batch packed as one token tree, one optimizer step. What a step does depends on the manifest, the step's number and the adapter,
and on nothing else.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

import torch

from nightschool.config.settings import NightConfig
from nightschool.errors import NightError
from nightschool_nightly.examples.select import Example
from nightschool_nightly.rewards.rubric import Rubric
from nightschool_nightly.rollouts.sampler import Ask, Sampler, seed_of
from nightschool_nightly.training.advantage import GroupFate, group_advantages
from nightschool_nightly.training.group import Group, score_group
from nightschool_nightly.training.loss import MemberTerms, policy_loss
from nightschool_nightly.training.metrics import StepMetrics, StepTotals
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, pack_tree

_MAX_TREE_TOKENS = 4096  # a larger batch is split into several trees, with the same gradient
_CLIP_NORM = 1.0


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

    def step(self, number: int, examples: Sequence[Example]) -> StepMetrics:
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
        learnt = self._learn(number, kept) if len(kept) >= self.settings.min_groups else StepTotals()
        return _metrics(number, groups, advantages.fates, learnt)

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

    def _learn(self, number: int, kept: Sequence[tuple[Group, Sequence[float | None]]]) -> StepTotals:
        batches = list(_batches(kept))
        total = sum(len(sample.completion_ids) for samples, _ in batches for sample in samples)
        learnt = StepTotals()
        if not total:
            return learnt
        for samples, terms in batches:
            tree = pack_tree(samples)
            logprobs_N, entropy_N = self.policy.tree_logprobs(tree, temperature=self.settings.temperature)
            loss, metrics = policy_loss(logprobs_N, tree.lengths, terms, total_tokens=total)
            if not torch.isfinite(loss):
                raise NightError(f"the loss of step {number} is {loss.item()}; nothing was published, serving is as it was")
            loss.backward()  # type: ignore[no-untyped-call]
            learnt.add(metrics, float(entropy_N.sum()), len(entropy_N), len(tree), tree.padded_tokens)
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


def _metrics(number: int, groups: Sequence[Group], fates: Sequence[GroupFate], learnt: StepTotals) -> StepMetrics:
    rollouts = [member for group in groups for member in group.rollouts]
    rewards = [member.reward for member in rollouts if member.reward is not None]
    counts = Counter(fates)
    return StepMetrics(
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


def with_kl(metrics: StepMetrics, kl: float) -> StepMetrics:
    """The metrics with the KL measured after the step."""
    return StepMetrics(**{**asdict(metrics), "kl": kl})
