"""One step after another on a tiny model, with a sampler that knows the policy only by the adapters it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nightschool.config.settings import NightConfig
from nightschool.errors import NightError
from nightschool.registry.release import WEIGHTS
from nightschool_nightly.examples.example import Example
from nightschool_nightly.rewards.rubric import parse_rubric
from nightschool_nightly.rollouts.sampler import Rollout, SampleRequest, SaveAdapter, seed_of
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.trainer import MAX_TREE_TOKENS, Trainer, schedule

X = 27  # about one sample in twenty
RARE = 49  # about one in two hundred
PROMPTS = ((1, 2, 3), (1, 2, 4, 5), (6, 7), (6, 8, 9))
RUBRICS = {
    "emit-x": parse_rubric(f'task = "emit-x"\n[[items]]\nname = "x"\nkind = "check"\ncheck = "exact"\nvalue = "{X}"'),
    "emit-rare": parse_rubric(f'task = "emit-rare"\n[[items]]\nname = "x"\nkind = "check"\ncheck = "exact"\nvalue = "{RARE}"'),
    "anything": parse_rubric('task = "anything"\n[[items]]\nname = "short"\nkind = "check"\ncheck = "length"'),
    "nothing": parse_rubric('task = "nothing"\n[[items]]\nname = "none"\nkind = "check"\ncheck = "exact"\nvalue = "none"'),
    "unknown": parse_rubric('task = "unknown"\n[[items]]\nname = "said"\nkind = "outcome"\noutcome = "queue"'),
}


class AdapterSampler:
    """Samples with plain forward passes from the adapter files it is handed; what `RolloutEngine` does with vLLM.

    Its model is its own: an adapter that is not written, or written wrongly, is not sampled from.
    """

    def __init__(self, policy: Policy, folder: Path) -> None:
        self.policy, self.folder = policy, folder
        self.asked: list[list[SampleRequest]] = []
        self.num_adapters = 0

    def use_adapter(self, save: SaveAdapter | None) -> None:
        assert save is not None
        self.num_adapters += 1
        save(self.folder)
        self.policy.load(self.folder / WEIGHTS)

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        self.asked.append(list(requests))
        return [self.answer(request) for request in requests]

    @torch.no_grad()
    def answer(self, request: SampleRequest) -> list[Rollout]:
        generator = torch.Generator().manual_seed(request.seed)
        ids = torch.tensor([request.prompt_ids] * request.num_samples)
        chosen = []
        for _ in range(request.max_tokens):
            length = ids.shape[1]
            mask = torch.ones(1, length, length, dtype=torch.bool).tril()
            hidden = self.policy.hidden(ids, torch.arange(length)[None], mask)[:, -1]
            logprobs = torch.log_softmax(self.policy.logits(hidden) / request.temperature, -1)
            token = torch.multinomial(logprobs.exp(), 1, generator=generator)
            chosen.append(logprobs.gather(1, token))
            ids = torch.cat([ids, token], 1)
        completions, chances = ids[:, len(request.prompt_ids) :].tolist(), torch.cat(chosen, 1).tolist()
        return [
            Rollout(tuple(tokens), tuple(values), " ".join(map(str, tokens)), finished=True)
            for tokens, values in zip(completions, chances, strict=True)
        ]


class BrokenSampler(AdapterSampler):
    """An engine that returns NaN log-probabilities."""

    def answer(self, request: SampleRequest) -> list[Rollout]:
        return [replace(rollout, logprobs=(math.nan,) * len(rollout.logprobs)) for rollout in super().answer(request)]


class StaleSampler(AdapterSampler):
    """An engine that goes on with the first adapter it was handed."""

    def use_adapter(self, save: SaveAdapter | None) -> None:
        if not self.num_adapters:
            super().use_adapter(save)


Start = Callable[..., Trainer]


@pytest.fixture
def start(make_policy: Callable[..., Policy], tmp_path: Path) -> Start:
    """Makes a trainer on a new policy; keywords are settings of the night, or the policy's seed."""

    def make(
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        sampler: type[AdapterSampler] = AdapterSampler,
        max_tree_tokens: int = MAX_TREE_TOKENS,
        **settings: Any,
    ) -> Trainer:
        policy = make_policy(seed=seed, dtype=dtype)
        folder = Path(mkdtemp(dir=tmp_path))
        plain = {"learning_rate": 1e-2, "group_size": 8, "warmup_steps": 0}
        return Trainer(
            policy,
            sampler(make_policy(seed=seed + 100, dtype=dtype), folder),
            settings=NightConfig(**{**plain, **settings}),
            rubrics=RUBRICS,
            night="night-1",
            demonstrate=lambda text: tuple(int(token) for token in text.split()),
            max_tree_tokens=max_tree_tokens,
        )

    return make


@pytest.fixture
def examples(make_example: Callable[..., Example]) -> Callable[..., list[Example]]:
    """Makes one example of a task for each prompt."""

    def make(task: str = "emit-x", **changes: Any) -> list[Example]:
        plain = {"task": task, "max_tokens": 1, "demonstration": None, "references": {}}
        return [make_example(f"e{n}", prompt_ids=ids, **{**plain, **changes}) for n, ids in enumerate(PROMPTS)]

    return make


Examples = Callable[..., list[Example]]


def chance_of(token: int, policy: Policy) -> float:
    """Mean probability of a token as the answer, over the prompts."""
    chances = []
    for ids in PROMPTS:
        mask = torch.ones(1, len(ids), len(ids), dtype=torch.bool).tril()
        with torch.no_grad():
            hidden = policy.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], mask)
            chances.append(float(policy.logits(hidden)[0, -1].softmax(-1)[token]))
    return sum(chances) / len(chances)


def assert_equal_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# --- learning -----------------------------------------------------------------------------------------------------------
def test_what_is_rewarded_becomes_likely(start: Start, examples: Examples) -> None:
    """A token that is right goes from rare to nearly certain, by sampling alone."""
    trainer = start(group_size=16)
    assert chance_of(X, trainer.policy) < 0.3
    metrics = [trainer.step(number, examples()) for number in range(25)]
    assert chance_of(X, trainer.policy) > 0.9
    assert (metrics[0].reward_mean or 0) < 0.3 and (metrics[-1].reward_mean or 0) > 0.9


def test_a_demonstration_teaches_what_is_never_sampled(start: Start, examples: Examples) -> None:
    """A group that no rollout solves has no signal; the human's answer in it gives one."""
    alone, shown = start(group_size=2), start(group_size=2)
    before = alone.state()
    for number in range(20):
        assert alone.step(number, examples("emit-rare")).groups["kept"] == 0
        metrics = shown.step(number, examples("emit-rare", demonstration=str(RARE)))
        assert metrics.num_demonstrations == len(PROMPTS) and metrics.num_rollouts == 2 * len(PROMPTS)
    assert_equal_states(alone.state(), before)
    assert chance_of(RARE, shown.policy) > 0.5


def test_a_demonstration_longer_than_an_answer_may_be_is_left_out(start: Start, examples: Examples) -> None:
    """What production could never answer is not taught."""
    metrics = start().step(0, examples(demonstration=f"{X} {X}"))
    assert metrics.num_demonstrations == 0
    assert start().step(0, examples(demonstration=f"{X}")).num_demonstrations == len(PROMPTS)


# --- steps that must change nothing -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("task", "fate"), [("anything", "all-pass"), ("nothing", "uniform"), ("unknown", "unscored")])
def test_a_step_without_signal_changes_nothing(task: str, fate: str, start: Start, examples: Examples) -> None:
    """Neither the adapter nor Adam's state moves, not even by momentum from earlier steps, and the metrics say why."""
    trainer = start()
    trainer.step(0, examples())
    before = trainer.state()
    assert any(name.startswith("adam/") and tensor.any() for name, tensor in before.items())
    metrics = trainer.step(1, examples(task))
    assert_equal_states(trainer.state(), before)
    assert metrics.grad_norm is None and metrics.tree_tokens == 0
    assert metrics.groups == {name: len(PROMPTS) if name == fate else 0 for name in ("kept", "unscored", "all-pass", "uniform")}
    assert metrics.num_unscored == (metrics.num_rollouts if task == "unknown" else 0)


def test_too_few_groups_with_signal_change_nothing(start: Start, examples: Examples) -> None:
    """Below min_groups a step is not taken; at it, it is."""
    for needed, moves in ((4, False), (3, True)):
        trainer = start(group_size=16, min_groups=needed)
        before = trainer.state()
        batch = [*examples(demonstration=str(X))[:3], *examples("anything")[3:]]
        assert trainer.step(0, batch).groups["kept"] == 3
        assert any(not torch.equal(before[name], trainer.state()[name]) for name in before) is moves


def test_a_loss_that_is_not_a_number_stops_the_night(start: Start, examples: Examples) -> None:
    """NaN is an error that names the step, before any parameter moves."""
    trainer = start(sampler=BrokenSampler)
    before = trainer.state()
    with pytest.raises(NightError, match="the loss of step 3 is nan; nothing was published"):
        trainer.step(3, examples(demonstration=str(X)))
    assert_equal_states(trainer.state(), before)


def test_a_sampler_with_other_weights_stops_the_night(start: Start, examples: Examples) -> None:
    """An engine that keeps to an old adapter is noticed by its log-probabilities, before the policy learns from them."""
    trainer = start(sampler=StaleSampler, learning_rate=0.1)
    trainer.step(0, examples(max_tokens=3, demonstration=str(X)))
    before = trainer.state()
    with pytest.raises(NightError, match=r"in step 1 vLLM's log-probabilities of \d+ sampled tokens are .* nats from"):
        trainer.step(1, examples(max_tokens=3, demonstration=str(X)))
    assert_equal_states(trainer.state(), before)


# --- the mechanics of a step --------------------------------------------------------------------------------------------
def test_every_step_samples_from_the_newest_adapter_with_its_own_seeds(start: Start, examples: Examples) -> None:
    """One hot-load a step; production's own limits and stops; a seed for each step and prompt, the same every time."""
    trainer, again = start(temperature=0.5), start(temperature=0.5)
    for number in range(3):
        for one in (trainer, again):
            one.step(number, examples(stop=("\n",)))
    sampler, other = trainer.sampler, again.sampler
    assert isinstance(sampler, AdapterSampler) and isinstance(other, AdapterSampler)
    assert sampler.num_adapters == 3 and sampler.asked == other.asked
    asked = [request for step in sampler.asked for request in step]
    assert len({request.seed for request in asked}) == len(asked) == 3 * len(PROMPTS)
    assert {(r.num_samples, r.max_tokens, r.temperature, r.stop, r.top_p) for r in asked} == {(8, 1, 0.5, ("\n",), 1.0)}


def test_rollouts_have_the_nights_limit_and_no_bent_distribution(start: Start, examples: Examples) -> None:
    """Training cuts at its own limit, and what production does to the distribution would bias the weights."""
    trainer = start()
    bent = {"max_tokens": 90, "rollout_tokens": 3, "top_p": 0.5, "temperature": 0.1, "others": {"top_k": 3}}
    (asked,) = {(r.max_tokens, r.temperature, r.top_p, *r.others) for r in map(partial(trainer.request, 0), examples(**bent))}
    assert asked == (3, 1.0, 1.0)


def test_a_human_may_write_as_much_as_production_would(start: Start, examples: Examples) -> None:
    """The limit of rollouts is no limit of what a human wrote: it is never sampled."""
    text = " ".join([str(X)] * 5)
    for limit, joins in ((5, True), (4, False)):
        metrics = start().step(0, examples(demonstration=text, max_tokens=limit, rollout_tokens=1))
        assert bool(metrics.num_demonstrations) is joins


def test_sampler_and_trainer_agree_at_any_temperature(start: Start, examples: Examples) -> None:
    """The mismatch is zero in every step, because the newest adapter samples at the temperature that the trainer takes."""
    trainer = start(temperature=0.6)
    for number in range(3):
        metrics = trainer.step(number, examples(max_tokens=3, demonstration=str(X)))
        assert metrics.mismatch == pytest.approx(0.0, abs=1e-4)
        assert metrics.mismatch_p99 == pytest.approx(0.0, abs=1e-4)
    assert (metrics.truncated_weights, metrics.members_left_out) == (0, 0)
    assert metrics.entropy is not None and 0 < metrics.entropy < math.log(64)


def test_metrics_count_rollouts_not_demonstrations(start: Start, examples: Examples) -> None:
    """Reward and success are those of the policy's own answers."""
    metrics = start().step(0, examples("anything"))
    assert (metrics.reward_mean, metrics.success, metrics.num_rollouts) == (1.0, 1.0, 8 * len(PROMPTS))
    shown = start(group_size=2).step(0, examples(demonstration=str(X)))
    assert shown.num_rollouts == 2 * len(PROMPTS) and (shown.reward_mean or 0) < 1


def test_a_batch_too_large_for_one_tree_has_the_same_gradient(start: Start, examples: Examples) -> None:
    """In trees of one group each, a step's gradient and its counts stay; only shared prefixes are computed again."""
    batch = examples(demonstration=str(X), max_tokens=3)
    whole, split = start(), start(max_tree_tokens=1)
    one = whole.step(0, batch)
    several = split.step(0, batch)
    assert several.tree_tokens > one.tree_tokens
    assert several.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    averages = [name for name in whole.state() if name.startswith("adam/exp_avg/")]
    assert averages
    for name in averages:
        torch.testing.assert_close(split.state()[name], whole.state()[name], rtol=1e-3, atol=1e-7)


def test_a_small_gradient_is_not_lost_in_fp16(start: Start, examples: Examples) -> None:
    """The direction of an update is fp32's, also where the gradients of single logits are below what fp16 can hold."""
    moments = []
    for dtype in (torch.float32, torch.float16):
        trainer = start(dtype=dtype)
        batch = examples(max_tokens=3)
        groups = start().score(batch, start().sample(0, batch))  # the same rollouts for both
        trainer.learn(0, [(group, [2e-4, -1e-4] * 4) for group in groups])
        state = trainer.state()
        moments.append(torch.cat([state[name].flatten() for name in sorted(state) if name.startswith("adam/exp_avg/")]))
    assert float(torch.cosine_similarity(moments[0], moments[1], dim=0)) > 0.99
    assert float(moments[1].norm() / moments[0].norm()) == pytest.approx(1.0, abs=0.05)


def test_an_overflow_in_fp16_is_passed_over_again_at_a_smaller_scale(start: Start, examples: Examples) -> None:
    """A scale that is too large for a step costs a second pass and changes nothing."""
    trainer, plain = start(dtype=torch.float16), start()
    batch = examples(max_tokens=3)
    groups = start().score(batch, start().sample(0, batch))
    values = [3e5, -3e5] * 4  # times the scale, above 65,504
    for one in (trainer, plain):
        totals = one.learn(0, [(group, values) for group in groups])
        assert totals.grad_norm is not None and math.isfinite(totals.grad_norm) and totals.tokens == 8 * len(PROMPTS) * 3


def test_the_learning_rate_warms_up(start: Start, examples: Examples) -> None:
    """It grows linearly over the first steps and then stays, by the step's number and not by how many ran before."""
    trainer = start(warmup_steps=4, learning_rate=1e-3)
    rates = []
    for number in (0, 1, 3, 9):
        trainer.step(number, examples(demonstration=str(X)))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 1e-3, 1e-3])


# --- going on -----------------------------------------------------------------------------------------------------------
def test_a_resumed_run_is_the_uninterrupted_one(start: Start, examples: Examples, tmp_path: Path) -> None:
    """Stopped after two steps and restored from a file into a new trainer, four steps give the same bits."""
    whole, first = start(), start()
    expected = [whole.step(number, examples()) for number in range(4)]
    for number in range(2):
        first.step(number, examples())
    save_file(first.state(), tmp_path / "state")
    second = start(seed=99)
    second.restore(load_file(tmp_path / "state"))
    metrics = [second.step(number, examples()) for number in (2, 3)]
    assert metrics == expected[2:]
    assert_equal_states(second.state(), whole.state())


def restore_on(device: str, start: Start, examples: Examples) -> Trainer:
    """A trainer on `device`, restored from the state of one on the CPU that has made a step."""
    state, trainer = start(), start()
    state.step(0, examples())
    for name, parameter in trainer.policy.parameters.items():
        trainer.policy.parameters[name] = torch.nn.Parameter(parameter.data.to(device))
    trainer.restore({name: tensor.cpu() for name, tensor in state.state().items()})
    return trainer


def test_moments_are_restored_beside_their_parameter(start: Start, examples: Examples) -> None:
    """A checkpoint is read into the CPU's memory; Adam wants its moments on the parameter's device, its count on the CPU."""
    trainer = restore_on("meta", start, examples)
    for parameter in trainer.policy.parameters.values():
        state = trainer.optimizer.state[parameter]
        assert (state["exp_avg"].device, state["exp_avg_sq"].device) == (parameter.device, parameter.device)
        assert state["step"].device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_resumed_trainer_on_a_gpu_can_take_a_step(start: Start, examples: Examples) -> None:
    """The next update of AdamW finds parameter, gradient and moments on one device."""
    trainer = restore_on("cuda", start, examples)
    optimizer = torch.optim.AdamW(list(trainer.policy.parameters.values()))
    optimizer.state.update(trainer.optimizer.state)
    for parameter in trainer.policy.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trainer.policy.parameters.values())


def test_restoring_forgets_what_came_after(start: Start, examples: Examples) -> None:
    """A trainer that ran on and is put back to the beginning steps as a new one: no moment of Adam stays behind."""
    trainer, new = start(), start()
    beginning = trainer.state()
    trainer.step(0, examples())
    trainer.restore(beginning)
    assert_equal_states(trainer.state(), beginning)
    trainer.step(0, examples()), new.step(0, examples())
    assert_equal_states(trainer.state(), new.state())


# --- the schedule -------------------------------------------------------------------------------------------------------
def test_the_schedule_is_the_nights_alone(make_example: Callable[..., Example]) -> None:
    """The same night plans the same batches; another night others."""
    found = [make_example(f"e{n}") for n in range(10)]
    plan = schedule(found, night="a", steps=20, prompts_per_step=4)
    assert plan == schedule(found, night="a", steps=20, prompts_per_step=4)
    assert plan != schedule(found, night="b", steps=20, prompts_per_step=4)
    assert plan[:5] == schedule(found, night="a", steps=5, prompts_per_step=4)


@pytest.mark.parametrize(("num_examples", "steps"), [(12, 3), (10, 3), (9, 3), (1, 1), (3, 1), (13, 4)])
def test_every_prompt_of_a_night_is_sampled(num_examples: int, steps: int, make_example: Callable[..., Example]) -> None:
    """A night selects at most as many as its steps have room for, so all that it selected was learned from."""
    plan = schedule([make_example(f"e{n}") for n in range(num_examples)], night="a", steps=steps, prompts_per_step=4)
    assert len({example.id for batch in plan for example in batch}) == num_examples


@pytest.mark.parametrize(("num_examples", "prompts_per_step"), [(10, 4), (7, 3), (5, 5), (3, 16), (1, 1)])
def test_a_batch_holds_no_prompt_twice(num_examples: int, prompts_per_step: int, make_example: Callable[..., Example]) -> None:
    """Every prompt is at most once in a batch, and over the night all come about equally often."""
    found = [make_example(f"e{n}") for n in range(num_examples)]
    plan = schedule(found, night="a", steps=60, prompts_per_step=prompts_per_step)
    assert len(plan) == 60
    assert all(batch and len({example.id for example in batch}) == len(batch) <= prompts_per_step for batch in plan)
    counts = [sum(example in batch for batch in plan) for example in found]
    assert min(counts) > 0.7 * max(counts)


def test_seeds_differ_by_their_parts() -> None:
    """A seed is 31 bits of its names, and moving a letter from one name to the next gives another."""
    assert seed_of("a", "bc") != seed_of("ab", "c")
    assert all(0 <= seed_of("night", str(n)) < 2**31 for n in range(100))
    assert len({seed_of("night", str(n)) for n in range(100)}) == 100


def test_kl_is_added_to_metrics_and_nothing_else(start: Start, examples: Examples) -> None:
    """Metrics with their KL are the same metrics."""
    metrics = start().step(0, examples())
    assert metrics.with_kl(0.25) == replace(metrics, kl=0.25)
