"""One training step after another, on one policy: steps 3 to 5 of a night (rollouts, rewards, GRPO).

What a step does depends on the night's manifest, the step's number and the adapter, and on nothing else. So a night
that resumes from a checkpoint ends with the same bytes. The formulas are in `advantage` and `loss`, the packing in
`tree`; here they are put in order.

Shapes: N trained tokens of one tree.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from nightschool.config.settings import NightConfig
from nightschool.errors import NightError
from nightschool_nightly.examples.example import Example
from nightschool_nightly.rewards.rubric import Rubric
from nightschool_nightly.rollouts.sampler import Rollout, Sampler, SampleRequest, seed_of
from nightschool_nightly.training.advantage import GroupFate, group_advantages
from nightschool_nightly.training.anchor import Anchor
from nightschool_nightly.training.group import Group, Member, score_group
from nightschool_nightly.training.loss import MemberTerms, policy_loss
from nightschool_nightly.training.loss_scale import loss_scales
from nightschool_nightly.training.metrics import StepMetrics, StepTotals
from nightschool_nightly.training.mismatch import check_mismatch, mean_and_p99
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tree import Sample, pack_tree

MAX_TREE_TOKENS = 4096
"""A larger batch is split into several trees, with the same gradient: it bounds the memory of a forward pass."""

# AdamW (arXiv 1711.05101). The second moment forgets faster than the usual 0.999: a night has tens of steps, not
# thousands. No weight decay: it would pull every release a little back to the base model in each step.
_BETAS, _WEIGHT_DECAY = (0.9, 0.95), 0.0
_CLIP_NORM = 1.0  # one batch with an odd gradient must not undo a night

ScoredGroup = tuple[Group, Sequence[float | None]]
"""A group and the advantage of each of its members; None takes no part."""


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
        anchor: Anchor | None = None,
        max_tree_tokens: int = MAX_TREE_TOKENS,
    ) -> None:
        """`night` is the manifest's digest; `demonstrate` gives the tokens of a human's answer with its end of turn.

        Without `anchor` the loss has no KL term.
        """
        self.policy, self.sampler, self.settings, self.rubrics = policy, sampler, settings, rubrics
        self._anchor = anchor
        self._night, self._demonstrate, self._max_tree_tokens = night, demonstrate, max_tree_tokens
        self.optimizer = torch.optim.AdamW(
            list(policy.parameters.values()), lr=settings.learning_rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY
        )

    def step(self, number: int, examples: Sequence[Example]) -> StepMetrics:
        """Sample, score and learn from one batch of prompts; `number` counts from 0.

        `NightError` when the loss or the gradient is not finite, or when the sampler does not sample from this policy;
        then the policy is as it was before.
        """
        groups = self.score(examples, self.sample(number, examples))
        advantages = group_advantages([group.rewards for group in groups], negative_weight=self.settings.negative_weight)
        kept = [
            (group, values)
            for group, values, fate in zip(groups, advantages.values, advantages.fates, strict=True)
            if fate is GroupFate.KEPT
        ]
        # With fewer groups the direction is mostly noise. Then not even Adam's momentum moves anything.
        totals = self.learn(number, kept) if len(kept) >= self.settings.min_groups else StepTotals()
        return _measure(number, groups, advantages.fates, totals)

    # --- step 3: rollouts -----------------------------------------------------------------------------------------------
    def sample(self, number: int, examples: Sequence[Example]) -> list[list[Rollout]]:
        """The group's rollouts for each prompt, from the policy as it is now."""
        self.sampler.use_adapter(self.policy.save)
        return self.sampler.sample([self.request(number, example) for example in examples])

    def request(self, number: int, example: Example) -> SampleRequest:
        """What is sampled for a prompt in step `number`.

        Not with production's top_p or any other of its parameters that bend the distribution: they would bias the weights.
        """
        return SampleRequest(
            prompt_ids=example.prompt_ids,
            num_samples=self.settings.group_size,
            max_tokens=example.rollout_tokens,
            temperature=self.settings.temperature,
            seed=seed_of(self._night, "rollout", str(number), example.id),
            stop=example.stop,
        )

    # --- step 4: rewards ------------------------------------------------------------------------------------------------
    def score(self, examples: Sequence[Example], rollouts: Sequence[Sequence[Rollout]]) -> list[Group]:
        """The group of each prompt, the human's answer joined, with its rewards."""
        return [
            score_group(example, answers, self.rubrics[example.task], self._demonstration(example))
            for example, answers in zip(examples, rollouts, strict=True)
        ]

    def _demonstration(self, example: Example) -> tuple[int, ...] | None:
        """Tokens of the human's answer; None when there is none, or when it is longer than an answer may be."""
        if example.demonstration is None:
            return None
        ids = self._demonstrate(example.demonstration)
        return ids if len(ids) <= example.max_tokens else None

    # --- step 5: GRPO ---------------------------------------------------------------------------------------------------
    def learn(self, number: int, kept: Sequence[ScoredGroup]) -> StepTotals:
        """One optimizer step on the groups that carry a signal."""
        totals = self._gradient(number, kept)
        check_mismatch(number, totals.mismatches)
        if totals.tokens > totals.left_out_tokens:
            totals.grad_norm = self._update(number)
        else:  # nobody is left to learn from: not even the KL term or Adam's momentum moves anything
            self.optimizer.zero_grad(set_to_none=True)
        return totals

    def _gradient(self, number: int, kept: Sequence[ScoredGroup]) -> StepTotals:
        """The gradient of the step; where it overflows in fp16 once more, at a smaller scale."""
        totals = StepTotals()
        for scale in loss_scales(self.policy.dtype, sum(len(member.token_ids) for group, _ in kept for member in group.members)):
            self.optimizer.zero_grad(set_to_none=True)
            totals = self._accumulate_gradient(number, kept, scale=scale)
            gradients = [p.grad.div_(scale) for p in self.policy.parameters.values() if p.grad is not None]
            if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
                break
        return totals

    def _accumulate_gradient(self, number: int, kept: Sequence[ScoredGroup], *, scale: float = 1.0) -> StepTotals:
        """Forward and backward pass over every tree of the step; the gradient is `scale` times too large."""
        trees = list(_split(kept, self._max_tree_tokens))
        total_tokens = sum(len(sample.completion_ids) for samples, _ in trees for sample in samples)
        totals = StepTotals()
        for place, (samples, terms) in enumerate(trees):
            # General prompts go into one tree only, and their term is a mean of its own: any split has the same gradient.
            is_last = place + 1 == len(trees)
            general = self._anchor.of_step(number) if self._anchor is not None and is_last else []
            loss, kl = self._add_tree(samples, terms, totals, total_tokens=total_tokens, general=general)
            if is_last:
                loss = loss * self._leave_out(totals, total_tokens)
            if kl is not None:
                loss = loss + self.settings.kl_weight * kl
            if not torch.isfinite(loss):
                raise NightError(f"the loss of step {number} is {loss.item()}; nothing was published, serving is as it was")
            (scale * loss).backward()  # type: ignore[no-untyped-call]
        return totals

    def _leave_out(self, totals: StepTotals, total_tokens: int) -> float:
        """Take the tokens of masked members out of the mean as well; the factor on the loss that has no gradient yet.

        Which members are masked is known after the forward pass over the last tree, when the gradient of all others is
        there already, as a mean over all tokens.
        """
        if not totals.left_out_tokens or totals.left_out_tokens == total_tokens:
            return 1.0
        factor = total_tokens / (total_tokens - totals.left_out_tokens)
        for parameter in self.policy.parameters.values():
            if parameter.grad is not None:
                parameter.grad *= factor
        return factor

    def _add_tree(
        self,
        samples: Sequence[Sample],
        terms: Sequence[MemberTerms],
        totals: StepTotals,
        *,
        total_tokens: int,
        general: Sequence[int] = (),
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The policy loss of one tree, and the KL of the `general` answers in it; its measures go into `totals`."""
        anchored = self._anchor.samples(general) if self._anchor is not None else []
        tree = pack_tree([*samples, *anchored])
        hidden_PH = self.policy.tree_hidden(tree)
        logprobs_N, entropy_N = self.policy.token_logprobs(
            tree, hidden_PH, num_samples=len(samples), temperature=self.settings.temperature
        )
        loss, metrics = policy_loss(logprobs_N, tree.lengths[: len(samples)], terms, total_tokens=total_tokens)
        totals.add(
            metrics,
            entropy=float(entropy_N.sum()),
            tokens=len(entropy_N),
            tree_tokens=len(tree),
            padded_tokens=tree.padded_tokens,
        )
        if self._anchor is None or not anchored:
            return loss, None
        kl = self._anchor.kl(general, tree, len(samples), hidden_PH).cpu()
        totals.general_kl = float(kl.detach())
        return loss, kl

    def _update(self, number: int) -> float:
        """Clip the gradient, take one step of AdamW, and clear the gradient; its norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(list(self.policy.parameters.values()), _CLIP_NORM)
        if not torch.isfinite(norm):
            raise NightError(f"the gradient of step {number} has norm {norm.item()}; nothing was published, serving is as it was")
        # Linear warm-up by the step's number, not by a count of updates: a resumed night has the same rate.
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * min(1.0, (number + 1) / max(1, self.settings.warmup_steps))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

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
            if f"adam/step/{name}" in tensors:  # Adam has no state before the first update
                state = {key: tensors[f"adam/{key}/{name}"].clone() for key in keys}
                # Moments stand beside their parameter; AdamW counts its steps on the CPU.
                self.optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}


def _split(kept: Sequence[ScoredGroup], max_tree_tokens: int) -> Iterator[tuple[list[Sample], list[MemberTerms]]]:
    """Members that take part, in trees of bounded size; a group is never split, so its prompt is computed once."""
    samples: list[Sample] = []
    terms: list[MemberTerms] = []
    size = 0
    for group, values in kept:
        taking_part = [(m, a) for m, a in zip(group.members, values, strict=True) if a and _learns_from(m, a)]
        needs = len(group.example.prompt_ids) + sum(len(member.token_ids) for member, _ in taking_part)
        if samples and size + needs > max_tree_tokens:
            yield samples, terms
            samples, terms, size = [], [], 0
        samples += [Sample(group.example.prompt_ids, member.token_ids) for member, _ in taking_part]
        terms += [MemberTerms(advantage, member.sampler_logprobs) for member, advantage in taking_part]
        size += needs
    if samples:
        yield samples, terms


def _learns_from(member: Member, advantage: float) -> bool:
    """Whether a member moves the policy.

    A human's answer only ever pulls. Its term has no importance weight that would fade as the policy leaves it, so
    pushing it down would have no end; and that another answer scored higher does not make it wrong.
    """
    return bool(member.token_ids) and (advantage > 0 or (advantage < 0 and member.sampler_logprobs is not None))


def _measure(number: int, groups: Sequence[Group], fates: Sequence[GroupFate], totals: StepTotals) -> StepMetrics:
    rollouts = [member for group in groups for member in group.rollouts]
    rewards = [member.reward for member in rollouts if member.reward is not None]
    counts = Counter(fates)
    mismatch, mismatch_p99 = mean_and_p99(totals.mismatches)
    return StepMetrics(
        step=number,
        reward_mean=math.fsum(rewards) / len(rewards) if rewards else None,
        success=sum(reward >= 1 for reward in rewards) / len(rewards) if rewards else None,
        num_rollouts=len(rollouts),
        num_unscored=len(rollouts) - len(rewards),
        num_demonstrations=sum(len(group.members) - len(group.rollouts) for group in groups),
        groups={fate.value: counts[fate] for fate in GroupFate},
        entropy=totals.entropy / totals.tokens if totals.tokens else None,
        mismatch=mismatch,
        mismatch_p99=mismatch_p99,
        truncated_weights=totals.truncated,
        members_left_out=totals.left_out,
        tree_tokens=totals.tree_tokens,
        padded_tokens=totals.padded_tokens,
        grad_norm=totals.grad_norm,
        kl=None,
        general_kl=totals.general_kl,
    )


def schedule(examples: Sequence[Example], *, night: str, steps: int, prompts_per_step: int) -> list[list[Example]]:
    """Which prompts each step samples, at most `prompts_per_step`: passes over all of them, each in its own order."""
    generator = random.Random(seed_of(night, "schedule"))  # noqa: S311 -- a schedule, not a secret
    queue: list[Example] = []
    batches = []
    for _ in range(steps):
        while len(queue) < min(prompts_per_step, len(examples)):
            queue += generator.sample(list(examples), len(examples))
        size = min(prompts_per_step, len(examples))
        batch, queue = queue[:size], queue[size:]
        # A pass may begin inside a batch. The same prompt twice in one batch would be one group counted twice.
        batches.append(list({example.id: example for example in batch}.values()))
    return batches
