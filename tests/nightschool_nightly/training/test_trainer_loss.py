"""What moves the policy in a step, and what the mean of its loss counts; the KL term beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch

from nightschool.config.settings import NightConfig
from nightschool.errors import NightError
from nightschool_nightly.examples.example import Example
from nightschool_nightly.rewards.rubric import parse_rubric
from nightschool_nightly.rollouts.sampler import Rollout, SampleRequest, SaveAdapter
from nightschool_nightly.training.advantage import group_advantages
from nightschool_nightly.training.anchor import Anchor
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.trainer import MAX_TREE_TOKENS, Trainer
from nightschool_nightly.training.tree import Sample

RUBRICS = {"say": parse_rubric('task = "say"\n[[items]]\nname = "five"\nkind = "check"\ncheck = "regex"\npattern = "^5"')}
GENERAL = [Sample((30, 31), (32, 33)), Sample((40,), (41, 42)), Sample((50, 51), (52,))]
Answers = dict[tuple[int, ...], list[tuple[int, ...]]]
TWO_GROUPS: Answers = {(1, 2, 3): [(5, 6), (7, 8)], (1, 9): [(5,), (8, 9, 9)]}

MakePolicy = Callable[..., Policy]


@dataclass
class Script:
    """Gives set answers; the log-probabilities are the policy's own, save for one prompt sampled with other weights."""

    policy: Policy
    answers: Answers
    foreign: tuple[int, ...] = ()

    def use_adapter(self, save: SaveAdapter | None) -> None: ...

    @torch.no_grad()
    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        return [[self.rollout(request.prompt_ids, ids) for ids in self.answers[request.prompt_ids]] for request in requests]

    def rollout(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Rollout:
        ids = torch.tensor([[*prompt, *answer]])
        mask = torch.ones(1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        logits = self.policy.logits(self.policy.hidden(ids, torch.arange(ids.shape[1])[None], mask))[0]
        own = logits[len(prompt) - 1 : -1].log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
        off = 50.0 if prompt == self.foreign and answer[0] != 5 else 0.0
        return Rollout(answer, tuple((own - off).tolist()), " ".join(map(str, answer)), finished=True)


def make_trainer(policy: Policy, answers: Answers, *, anchored: bool = False, **options: object) -> Trainer:
    foreign = options.pop("foreign", ())
    max_tree_tokens = options.pop("max_tree_tokens", MAX_TREE_TOKENS)
    return Trainer(
        policy,
        Script(policy, answers, foreign),  # type: ignore[arg-type]
        settings=NightConfig(learning_rate=1e-2, warmup_steps=0, **options),  # type: ignore[arg-type]
        rubrics=RUBRICS,
        night="night-1",
        demonstrate=lambda text: tuple(int(token) for token in text.split()),
        anchor=Anchor(policy, GENERAL, per_step=2, seed=0) if anchored else None,
        max_tree_tokens=max_tree_tokens,  # type: ignore[arg-type]
    )


@pytest.fixture
def batch_of(make_example: Callable[..., Example]) -> Callable[..., list[Example]]:
    def make(answers: Answers, **changes: object) -> list[Example]:
        plain = {"task": "say", "demonstration": None, **changes}
        return [make_example(str(ids), prompt_ids=ids, **plain) for ids in answers]

    return make


BatchOf = Callable[..., list[Example]]


def gradient_of(trainer: Trainer, batch: Sequence[Example]) -> dict[str, torch.Tensor]:
    """The gradient of one step, before clipping: after the first update Adam's mean is a tenth of the clipped one."""
    norm = trainer.step(0, batch).grad_norm
    assert norm is not None
    factor = 10 * max(1.0, norm)
    return {name: factor * value for name, value in trainer.state().items() if name.startswith("adam/exp_avg/")}


def accumulated(trainer: Trainer, batch: Sequence[Example]) -> dict[str, torch.Tensor]:
    """The gradient of one step before its update: a night may stop there when sampler and trainer disagree a lot."""
    groups = trainer.score(batch, trainer.sample(0, batch))
    values = group_advantages([group.rewards for group in groups]).values
    trainer._accumulate_gradient(0, list(zip(groups, values, strict=True)))
    return {name: p.grad.clone() for name, p in trainer.policy.parameters.items() if p.grad is not None}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other) and one
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-6, msg=lambda text, at=name: f"{at}: {text}")


# --- human answers ------------------------------------------------------------------------------------------------------
def test_a_human_answer_below_its_group_moves_nothing(make_policy: MakePolicy, batch_of: BatchOf) -> None:
    """A demonstration only ever pulls: which tokens one with a negative advantage has cannot matter."""
    answers: Answers = {(1, 2, 3): [(5, 6), (5, 7)]}
    found = [
        gradient_of(make_trainer(make_policy(moved=0.1), answers, negative_weight=1.0), batch_of(answers, demonstration=text))
        for text in ("8 9", "10 11 12")
    ]
    assert any(tensor.any() for tensor in found[0].values())
    assert_close(*found)


def test_a_human_answer_above_its_group_pulls(make_policy: MakePolicy, batch_of: BatchOf) -> None:
    """One that scores better than the rollouts becomes likely, token by token."""
    answers: Answers = {(1, 2, 3): [(7, 6), (8, 7)]}
    found = [
        gradient_of(make_trainer(make_policy(moved=0.1), answers), batch_of(answers, demonstration=text))
        for text in ("5 9", "5 8")
    ]
    assert any(not torch.allclose(found[0][name], found[1][name], rtol=1e-2) for name in found[0])


# --- members left out ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("max_tree_tokens", [MAX_TREE_TOKENS, 1])
def test_a_masked_member_is_in_no_sum(make_policy: MakePolicy, batch_of: BatchOf, max_tree_tokens: int) -> None:
    """What sampler and trainer disagree about leaves the mean's denominator, too: its length cannot matter."""
    longer: Answers = {**TWO_GROUPS, (1, 9): [(5,), (8, 9, 9, 9, 9, 9)]}
    found = []
    for answers in (TWO_GROUPS, longer):
        trainer = make_trainer(make_policy(moved=0.1), answers, foreign=(1, 9), max_tree_tokens=max_tree_tokens)
        found.append(accumulated(trainer, batch_of(answers)))
    assert_close(*found)


def test_a_step_whose_members_are_all_masked_changes_nothing(make_policy: MakePolicy, batch_of: BatchOf) -> None:
    """Nobody is left to learn from, so neither the adapter nor Adam's state moves, KL term or not."""
    answers: Answers = {(1, 2, 3): [(7, 8), (8, 8)]}
    for anchored in (False, True):
        trainer = make_trainer(make_policy(moved=0.1), answers, foreign=(1, 2, 3), anchored=anchored)
        before = trainer.state()
        with contextlib.suppress(NightError):  # such a disagreement may also end the night
            assert trainer.step(0, batch_of(answers, demonstration="9")).grad_norm is None
        assert set(trainer.state()) == set(before)
        assert all(torch.equal(trainer.state()[name], before[name]) for name in before)


# --- the KL term --------------------------------------------------------------------------------------------------------
def test_the_kl_term_is_added_with_its_weight(make_policy: MakePolicy, batch_of: BatchOf) -> None:
    """Twice the weight adds twice the term's own gradient to that of the rewards."""
    batch = batch_of(TWO_GROUPS)
    none, once, twice = (
        gradient_of(make_trainer(make_policy(moved=0.2), TWO_GROUPS, anchored=True, kl_weight=weight), batch)
        for weight in (0.0, 1.0, 2.0)
    )
    added = {name: once[name] - none[name] for name in none}
    assert any(tensor.abs().max() > 1e-3 for tensor in added.values())
    assert_close({name: none[name] + 2 * added[name] for name in none}, twice)
    assert_close(none, gradient_of(make_trainer(make_policy(moved=0.2), TWO_GROUPS), batch))


def test_the_kl_term_does_not_depend_on_the_split_into_trees(make_policy: MakePolicy, batch_of: BatchOf) -> None:
    """One tree or one for each group, with a member masked or not: general prompts count once, whole."""
    for foreign in ((), (1, 2, 3)):
        whole, split = (
            accumulated(
                make_trainer(make_policy(moved=0.2), TWO_GROUPS, anchored=True, foreign=foreign, max_tree_tokens=size),
                batch_of(TWO_GROUPS),
            )
            for size in (MAX_TREE_TOKENS, 1)
        )
        assert_close(whole, split)


def test_a_step_measures_its_own_term(make_policy: MakePolicy, batch_of: BatchOf) -> None:
    """The KL in a step's loss stands in its metrics; there is none without the term."""
    metrics = make_trainer(make_policy(moved=0.2), TWO_GROUPS, anchored=True).step(0, batch_of(TWO_GROUPS))
    assert (metrics.general_kl or 0) > 0.01
    assert make_trainer(make_policy(moved=0.2), TWO_GROUPS).step(0, batch_of(TWO_GROUPS)).general_kl is None


def test_a_night_with_the_term_resumes_to_the_same_bytes(make_policy: MakePolicy, batch_of: BatchOf) -> None:
    """A step's general prompts follow from its number: killed after any step, the night ends with the same state."""
    calm = make_trainer(make_policy(), TWO_GROUPS, anchored=True)
    states = []
    for number in range(4):
        calm.step(number, batch_of(TWO_GROUPS))
        states.append(calm.state())
    for killed_after in range(3):
        resumed = make_trainer(make_policy(), TWO_GROUPS, anchored=True)
        resumed.restore(states[killed_after])
        for number in range(killed_after + 1, 4):
            resumed.step(number, batch_of(TWO_GROUPS))
        assert all(torch.equal(resumed.state()[name], states[3][name]) for name in states[3])
