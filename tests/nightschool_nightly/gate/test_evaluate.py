"""Held-out prompts, answered as production asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nightschool_nightly.examples.example import Example
from nightschool_nightly.gate.evaluate import answer_holdout
from nightschool_nightly.gate.evaluation import Contender
from nightschool_nightly.rewards.rubric import parse_rubric
from nightschool_nightly.rollouts.sampler import Rollout, SampleRequest, SaveAdapter

RUBRICS = {"triage": parse_rubric('task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"')}


class Script:
    """A sampler that answers what it is told, and remembers what it was asked."""

    def __init__(self, *answers: Rollout | None) -> None:
        self.answers = answers
        self.asked: list[SampleRequest] = []
        self.used: list[SaveAdapter | None] = []

    def use_adapter(self, save: SaveAdapter | None) -> None:
        self.used.append(save)

    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Rollout]]:
        self.asked += requests
        return [[answer] if answer else [] for answer in self.answers]


def said(text: str, *, finished: bool = True) -> Rollout:
    return Rollout((1,), (-0.1,), text, finished)


def test_answers_are_scored_in_order(make_example: Callable[..., Example]) -> None:
    """Each prompt's text and reward stand in its own place, under the policy's name."""
    examples = [make_example("a"), make_example("b", references={"queue": "loan"}), make_example("c", references={})]
    found = answer_holdout(
        Contender.BASE, Script(said("fraud"), said("fraud"), said("fraud")), None, examples, RUBRICS, night="n"
    )
    assert (found.policy, found.texts, found.rewards) == ("base", ("fraud",) * 3, (1.0, 0.0, None))


def test_an_answer_cut_where_production_cuts_is_scored_as_users_got_it(make_example: Callable[..., Example]) -> None:
    """The gate's limit is production's, whatever that of training: a candidate that rambles does not get its prompt left out."""
    examples = [make_example("a", max_tokens=90, rollout_tokens=3), make_example("b")]
    script = Script(said("fraud, because", finished=False), said("fraud", finished=False))
    found = answer_holdout(Contender.CANDIDATE, script, None, examples, RUBRICS, night="n")
    assert (found.rewards, found.texts, found.cut) == ((0.0, 1.0), ("fraud, because", "fraud"), (True, True))
    assert [request.max_tokens for request in script.asked] == [90, 4]


def test_a_request_that_the_engine_refuses_is_unscored(make_example: Callable[..., Example]) -> None:
    """A schema that vLLM cannot follow stops no night; nobody has an answer, so nobody has a score."""
    found = answer_holdout(
        Contender.BASE, Script(None, said("fraud")), None, [make_example("a"), make_example("b")], RUBRICS, night="n"
    )
    assert (found.texts, found.rewards, found.cut) == (("", "fraud"), (None, 1.0), (False, False))


def test_every_policy_is_asked_the_same(make_example: Callable[..., Example]) -> None:
    """One answer a prompt with production's own settings, and a seed of the night and the prompt for all policies."""
    said_so = {"temperature": 0.0, "top_p": 0.5, "stop": ("\n",), "max_tokens": 7, "others": {"top_k": 3}}
    examples = [make_example("a", **said_so), make_example("b")]
    base, candidate, tomorrow = (Script(said("x"), said("y")) for _ in range(3))

    def save(folder: Path) -> None: ...

    answer_holdout(Contender.BASE, base, None, examples, RUBRICS, night="n")
    answer_holdout(Contender.CANDIDATE, candidate, save, examples, RUBRICS, night="n")
    answer_holdout(Contender.BASE, tomorrow, None, examples, RUBRICS, night="m")
    assert base.asked == candidate.asked and base.used == [None] and candidate.used == [save]
    first, second = base.asked
    assert (first.num_samples, first.max_tokens, first.temperature, first.top_p, first.stop) == (1, 7, 0.0, 0.5, ("\n",))
    assert (first.others, second.others) == ({"top_k": 3}, {})
    assert first.seed != second.seed != tomorrow.asked[1].seed
