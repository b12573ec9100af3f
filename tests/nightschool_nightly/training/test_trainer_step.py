"""One training step against the formulas, computed apart: plain rows, plain sums, one update of AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from nightschool.config.settings import NightConfig
from nightschool_nightly.examples.example import Example
from nightschool_nightly.rewards.rubric import parse_rubric
from nightschool_nightly.rollouts.sampler import Rollout, SampleRequest, SaveAdapter
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.trainer import Trainer

RUBRIC = parse_rubric(
    """
    task = "say"
    items = [
        {name = "five", kind = "check", check = "regex", pattern = "^5", weight = 3},
        {name = "short", kind = "check", check = "length", max_chars = 3, weight = 1},
    ]
    """
)
SETTINGS = NightConfig(learning_rate=1e-2, warmup_steps=4, temperature=0.7, negative_weight=0.3, group_size=3)
# Answers by prompt, with what the sampler's log-probabilities are off by at each token; the third prompt has no signal.
SCRIPT = {
    (1, 2, 3): [((5, 6), (0.1, -0.2)), ((5,), (0.0,)), ((7, 8, 9), (-0.9, 0.3, 0.0))],  # e^0.9 is cut at 2
    (1, 2, 4): [((8, 8), (0.0, 0.0)), ((8, 8), (0.0, 0.0)), ((5, 6), (0.2, 0.2))],
    (6,): [((7,), (0.0,)), ((9,), (0.0,)), ((8,), (0.0,))],
}
REWARDS = {(5, 6): 1.0, (5,): 1.0, (7, 8, 9): 0.0, (8, 8): 0.25, (7,): 0.25, (9,): 0.25, (8,): 0.25}


def plain_logprobs(policy: Policy, prompt: Sequence[int], answer: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of each token of an answer, from one plain row at the temperature of the night."""
    ids = torch.tensor([[*prompt, *answer]])
    mask = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    logits = policy.logits(policy.hidden(ids, torch.arange(ids.shape[1])[None], mask))[0]
    logprobs = (logits[len(prompt) - 1 : -1] / SETTINGS.temperature).log_softmax(-1)
    return logprobs[torch.arange(len(answer)), torch.tensor(answer)], -(logprobs.exp() * logprobs).sum(-1).detach()


class Script:
    """A sampler that gives the answers of `SCRIPT`."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def use_adapter(self, save: SaveAdapter | None) -> None: ...

    @torch.no_grad()
    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        return [[self.rollout(request.prompt_ids, *answer) for answer in SCRIPT[request.prompt_ids]] for request in requests]

    def rollout(self, prompt: tuple[int, ...], answer: tuple[int, ...], off: tuple[float, ...]) -> Rollout:
        own = plain_logprobs(self.policy, prompt, answer)[0].tolist()
        logprobs = tuple(value + error for value, error in zip(own, off, strict=True))
        return Rollout(answer, logprobs, " ".join(map(str, answer)), finished=True)


@pytest.fixture
def batch(make_example: Callable[..., Example]) -> list[Example]:
    found = [make_example(str(ids), prompt_ids=ids, task="say", demonstration=None) for ids in SCRIPT]
    return [replace(found[0], demonstration="5 5"), *found[1:]]


def make_trainer(policy: Policy) -> Trainer:
    return Trainer(
        policy,
        Script(policy),
        settings=SETTINGS,
        rubrics={"say": RUBRIC},
        night="night-1",
        demonstrate=lambda text: tuple(int(token) for token in text.split()),
    )


def expected_step(policy: Policy) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradient of each matrix and the metrics of the first step, token by token from the formulas."""
    groups = [[(prompt, answer, off, REWARDS[answer]) for answer, off in answers] for prompt, answers in SCRIPT.items()]
    groups = [group for group in groups if len({reward for *_, reward in group}) > 1]
    members = [(*member, i) for i, group in enumerate(groups) for member in group] + [((1, 2, 3), (5, 5), None, 1.0, 0)]
    means = [sum(r for *_, r, i in members if i == n) / sum(i == n for *_, i in members) for n in range(len(groups))]
    scale = math.sqrt(sum((r - means[i]) ** 2 for *_, r, i in members) / len(members)) + 1e-4
    total = sum(len(answer) for _, answer, *_ in members)
    surrogate, off_sum, num_sampled, entropies = torch.zeros(()), 0.0, 0, list[torch.Tensor]()
    for prompt, answer, off, reward, i in members:
        advantage = (reward - means[i]) / scale
        advantage *= SETTINGS.negative_weight if advantage < 0 else 1.0
        logprobs, entropy = plain_logprobs(policy, prompt, answer)
        weights = torch.tensor([min(math.exp(-error), 2.0) for error in off]) if off else torch.ones(len(answer))
        surrogate = surrogate - advantage * (weights * logprobs).sum() / total
        off_sum, num_sampled = off_sum + sum(map(abs, off or ())), num_sampled + len(off or ())
        entropies.append(entropy)
    gradients = torch.autograd.grad(surrogate, list(policy.parameters.values()))
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    metrics = {"mismatch": off_sum / num_sampled, "entropy": float(torch.cat(entropies).mean()), "grad_norm": norm}
    return dict(zip(policy.parameters, gradients, strict=True)), metrics


def test_a_step_is_the_formulas(make_policy: Callable[..., Policy], batch: list[Example]) -> None:
    """Rewards, advantages, weights, the mean over tokens, clipping and the metrics are those of the docstrings."""
    policy = make_policy(moved=0.2)
    gradients, expected = expected_step(policy)
    found = (trainer := make_trainer(policy)).step(0, batch)
    assert found.groups == {"kept": 2, "unscored": 0, "all-pass": 0, "uniform": 1}
    assert (found.num_rollouts, found.num_demonstrations, found.truncated_weights, found.members_left_out) == (9, 1, 1, 0)
    assert found.reward_mean == pytest.approx((1 + 1 + 0 + 0.25 + 0.25 + 1 + 0.75) / 9)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4), name
    clipped = min(1.0, 1.0 / (expected["grad_norm"] + 1e-6))
    for name, gradient in gradients.items():
        first_moment = trainer.state()[f"adam/exp_avg/{name}"]  # after one step, a tenth of the gradient
        torch.testing.assert_close(first_moment, 0.1 * clipped * gradient, rtol=2e-3, atol=1e-6)


def test_an_update_is_adamw_without_decay(make_policy: Callable[..., Policy], batch: list[Example]) -> None:
    """The first update moves each number by the warmed-up rate against its gradient; nothing shrinks by itself."""
    policy = make_policy(moved=0.2)
    trainer = make_trainer(policy)
    before = policy.state()
    trainer.step(0, batch)
    rate = SETTINGS.learning_rate / SETTINGS.warmup_steps
    for name, after in policy.state().items():
        gradient = trainer.state()[f"adam/exp_avg/{name}"] / 0.1
        torch.testing.assert_close(after, before[name] - rate * gradient / (gradient.abs() + 1e-8), rtol=1e-5, atol=1e-6)


def test_the_same_step_gives_the_same_bits(make_policy: Callable[..., Policy], batch: list[Example]) -> None:
    """Two trainers that start alike agree to the last bit after three steps, and in every metric."""
    one, other = (make_trainer(make_policy(moved=0.2)) for _ in range(2))
    assert [one.step(n, batch) for n in range(3)] == [other.step(n, batch) for n in range(3)]
    states = one.state(), other.state()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
