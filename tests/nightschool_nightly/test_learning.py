"""Steps 3 to 7 of a night in one process, on a tiny model: the policy samples for itself where vLLM would."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from nightschool.config.settings import Config, NightConfig
from nightschool.registry.folder import Registry
from nightschool.registry.release import WEIGHTS
from nightschool_nightly import learning
from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.folder import EVALUATION, NightFolder
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.gate.evaluation import Evaluation
from nightschool_nightly.inputs import FrozenNight, NightInputs
from nightschool_nightly.progress import Progress
from nightschool_nightly.rewards.rubric import parse_rubric
from nightschool_nightly.rollouts.sampler import Rollout, SampleRequest, SaveAdapter
from nightschool_nightly.training import general
from nightschool_nightly.training.policy import Policy

RUBRIC = parse_rubric('task = "say"\n[[items]]\nname = "five"\nkind = "check"\ncheck = "exact"\nvalue = "5"')
NIGHT = {"steps": 12, "prompts_per_step": 4, "group_size": 8, "learning_rate": 2e-2, "warmup_steps": 0}


class Tokenizer:
    """Texts of numbers; a general prompt is three tokens drawn by its words."""

    def __init__(self, model: Path) -> None: ...

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        digest = hashlib.sha256("\n".join(message["content"] for message in messages).encode()).digest()
        return tuple(20 + byte % 40 for byte in digest[:3])

    def answer_ids(self, text: str) -> tuple[int, ...]:
        return tuple(int(token) for token in text.split())


class SelfSampler:
    """The policy of the night samples from itself; an adapter is written and read back as vLLM does."""

    policy: Policy

    def __init__(self, model: Path, settings: Any, *, adapters: Path) -> None:
        self._base, self._folder, self._number = True, adapters, 0

    def use_adapter(self, save: SaveAdapter | None) -> None:
        self._base, self._number = save is None, self._number + 1
        if save is not None:
            save(self._folder / str(self._number))

    @torch.no_grad()
    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        if self._base:
            with self.policy.base():
                return [self._answer(request) for request in requests]
        return [self._answer(request) for request in requests]

    def _answer(self, request: SampleRequest) -> list[Rollout]:
        generator = torch.Generator().manual_seed(request.seed)
        ids, chosen = torch.tensor([request.prompt_ids] * request.num_samples), []
        for _ in range(request.max_tokens):
            length = ids.shape[1]
            mask = torch.ones(1, length, length, dtype=torch.bool).tril()
            logits = self.policy.logits(self.policy.hidden(ids, torch.arange(length)[None], mask)[:, -1])
            logprobs = torch.log_softmax(logits / request.temperature, -1)
            token = torch.multinomial(logprobs.exp(), 1, generator=generator)
            chosen.append(logprobs.gather(1, token))
            ids = torch.cat([ids, token], 1)
        tokens, chances = ids[:, len(request.prompt_ids) :].tolist(), torch.cat(chosen, 1).tolist()
        return [
            Rollout(tuple(answer), tuple(values), " ".join(map(str, answer)), finished=True)
            for answer, values in zip(tokens, chances, strict=True)
        ]


@pytest.fixture
def selection(make_example: Callable[..., Example]) -> Selection:
    """Twenty users to learn from and ten to test with."""

    def examples(first: int, count: int) -> tuple[Example, ...]:
        return tuple(
            make_example(
                f"e{n}", task="say", prompt_ids=(n % 8 + 1, n % 5 + 10, 3), max_tokens=1, demonstration="5", references={}
            )
            for n in range(first, first + count)
        )

    return Selection(examples(0, 20), examples(100, 10), {}, 30)


@pytest.fixture
def start(
    tiny_model: Path, make_manifest: Callable[..., NightManifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., FrozenNight]:
    """Freezes a night with these settings in a folder of this name."""
    begin = learning._start_policy

    def remembered(night: FrozenNight) -> Policy:
        SelfSampler.policy = begin(night)
        return SelfSampler.policy

    monkeypatch.setattr(learning, "_start_policy", remembered)
    monkeypatch.setattr(learning, "RolloutEngine", SelfSampler)
    monkeypatch.setattr(learning, "PolicyTokenizer", Tokenizer)
    monkeypatch.setattr(general, "_ANSWER_TOKENS", 3)  # 32 take the tiny model's plain forward passes minutes

    def make(name: str, **settings: Any) -> FrozenNight:
        config = replace(Config(), night=NightConfig(**{**NIGHT, **settings}))
        inputs = NightInputs(config, "acme", tiny_model, {"say": RUBRIC}, Registry(tmp_path / "registry"), None)  # type: ignore[arg-type]
        folder = NightFolder(tmp_path / name)
        return FrozenNight(inputs, make_manifest(), folder, Progress(Console(file=io.StringIO())))

    return make


Start = Callable[..., FrozenNight]


def weights(night: FrozenNight) -> bytes:
    return (night.folder.candidate / WEIGHTS).read_bytes()


def test_a_night_learns_inside_its_budget(start: Start, selection: Selection) -> None:
    """The KL term holds general answers while the task is learned; without it, the night ends with a smaller change.

    The gate measures on prompts that no night trains with. What it sees was chosen on training users, and the figures of
    all that was weighed are written down.
    """
    free = learning.learn_and_evaluate(start("free", kl_weight=0.0, kl_budget=0.0), selection)
    held = learning.learn_and_evaluate(start("held", kl_weight=1.0, kl_budget=100.0), selection)
    for found in (free, held):
        assert mean(found.candidate.rewards) > mean(found.base.rewards) + 0.5
    assert held.kl < 0.5 * free.kl and held.alternatives == ()
    kls = {each.share: each.kl for each in free.alternatives}
    assert not any(each.chosen for each in free.alternatives), "nothing keeps a budget of 0"
    assert set(kls) == {1.0, 0.75, 0.5, 0.35, 0.25} and kls[1.0] == free.kl
    budget = kls[0.35]
    night = start("rescued", kl_weight=0.0, kl_budget=budget)
    found = learning.learn_and_evaluate(night, selection)
    (chosen,) = (each for each in found.alternatives if each.chosen)
    assert chosen == found.alternatives[0] and found.kl == chosen.kl <= budget
    assert {(each.step, each.share, each.kl) for each in found.alternatives} >= {
        (12, share, kl) for share, kl in kls.items() if kl > budget and share > chosen.share
    }
    assert {each.num_prompts for each in found.alternatives} == {5}, "a quarter of 20 training users"
    assert Evaluation.from_json((night.folder.path / EVALUATION).read_text()) == found


def mean(rewards: Sequence[float | None]) -> float:
    known = [reward for reward in rewards if reward is not None]
    return sum(known) / len(known)


def test_a_night_that_was_killed_chooses_the_same(start: Start, selection: Selection) -> None:
    """The same bytes and the same figures, whether it was killed in its training or while it weighed smaller changes."""
    settings = {"kl_weight": 0.3, "kl_budget": 0.01}
    calm, killed = start("calm", **settings), start("killed", **settings)
    expected = learning.learn_and_evaluate(calm, selection)
    assert expected.alternatives
    for steps in (5, 12):
        _stop_after(start("killed", **settings), selection, steps=steps)
    assert learning.learn_and_evaluate(killed, selection) == expected
    assert weights(killed) == weights(calm)
    assert not list(killed.folder.path.glob("earlier-*"))


class KilledError(Exception):
    """A night that is stopped in the middle."""


def _stop_after(night: FrozenNight, selection: Selection, *, steps: int) -> None:
    """Run a night until its checkpoint after `steps` steps is written."""
    save = night.folder.save_checkpoint

    def stop(done: int, *rest: Any) -> None:
        save(done, *rest)
        if done == steps:
            raise KilledError

    night.folder.save_checkpoint = stop  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        learning.learn_and_evaluate(night, selection)
