"""The general prompts, and which of them a night takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import pytest

from nightschool.errors import NightError
from nightschool_nightly.rollouts.sampler import Rollout, SampleRequest, SaveAdapter
from nightschool_nightly.training.general import GeneralAnswers, Use, answer_prompts, choose_prompts, general_prompts
from nightschool_nightly.training.tree import Sample


def test_there_are_enough_of_every_family() -> None:
    """At least 200 prompts to train with and 40 for the gate, in ten families, each in both."""
    training, gate = general_prompts(Use.TRAINING), general_prompts(Use.GATE)
    assert len(training) >= 200 and len(gate) == 40
    for prompts in (training, gate):
        families = Counter(prompt.family for prompt in prompts)
        assert len(families) == 10 and len(set(families.values())) == 1
    assert {prompt.family for prompt in training} == {prompt.family for prompt in gate}


def test_no_prompt_measures_what_it_taught() -> None:
    """Ids and conversations are all different, so none is both in a night's loss and in the gate's measurement."""
    prompts = [*general_prompts(Use.TRAINING), *general_prompts(Use.GATE)]
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    texts = {" ".join(message["content"].lower() for message in prompt.messages) for prompt in prompts}
    assert len(texts) == len(prompts)


def test_every_conversation_waits_for_an_answer() -> None:
    """Roles are known, a system message comes first, and the last message is a user's."""
    for prompt in (*general_prompts(Use.TRAINING), *general_prompts(Use.GATE)):
        roles = [message["role"] for message in prompt.messages]
        assert roles[-1] == "user" and set(roles) <= {"system", "user", "assistant"}, prompt.id
        assert "system" not in roles[1:] and all(message["content"].strip() for message in prompt.messages), prompt.id


@pytest.mark.parametrize("count", [1, 10, 24, 33])
def test_a_choice_takes_as_many_of_each_family(count: int) -> None:
    """Give or take one, whatever the number; the same seed chooses the same, another one others."""
    prompts = general_prompts(Use.TRAINING)
    chosen = choose_prompts(prompts, count, seed=1)
    assert len({prompt.id for prompt in chosen}) == len(chosen) == count
    families = Counter(prompt.family for prompt in chosen)
    assert max(families.values()) - (min(families.values()) if len(families) == 10 else 0) <= 1
    assert chosen == choose_prompts(prompts, count, seed=1)
    assert count == 1 or chosen != choose_prompts(prompts, count, seed=2)


def test_asking_for_more_than_there_are_gives_all() -> None:
    """Every prompt once."""
    prompts = general_prompts(Use.GATE)
    assert sorted(prompt.id for prompt in choose_prompts(prompts, 1000, seed=0)) == sorted(prompt.id for prompt in prompts)


class Echo:
    """A sampler that answers with the prompt's own tokens."""

    def __init__(self) -> None:
        self.asked: list[SampleRequest] = []
        self.used: list[SaveAdapter | None] = []

    def use_adapter(self, save: SaveAdapter | None) -> None:
        self.used.append(save)

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        self.asked += requests
        return [[Rollout(request.prompt_ids, (0.0,) * len(request.prompt_ids), "", True)] for request in requests]


def test_the_base_model_answers_once_at_its_own_temperature() -> None:
    """Without any adapter, one answer of bounded length a prompt, each with a seed of its own."""
    echo = Echo()
    assert answer_prompts(echo, [(1, 2), (3,)], seed=7) == [Sample((1, 2), (1, 2)), Sample((3,), (3,))]
    assert echo.used == [None]
    assert [(r.num_samples, r.max_tokens, r.temperature, r.top_p, r.seed) for r in echo.asked] == [
        (1, 32, 1.0, 1.0, 7),
        (1, 32, 1.0, 1.0, 8),
    ]


def test_answers_come_back_from_the_nights_folder() -> None:
    """A resumed night trains with the very same answers; a damaged file says what to do."""
    answers = GeneralAnswers((Sample((1, 2), (3,)),), (Sample((4,), ()), Sample((5,), (6, 7))))
    assert GeneralAnswers.from_json(answers.to_json()) == answers
    for damaged in ("", "{}", json.dumps({"training": 3, "gate": []})):
        with pytest.raises(NightError, match="start the night without --resume"):
            GeneralAnswers.from_json(damaged)
