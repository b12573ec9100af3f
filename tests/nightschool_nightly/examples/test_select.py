"""Which calls become a night's prompts, which only test, and the name of every reason why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from nightschool import semconv as names
from nightschool.config.settings import NightConfig
from nightschool.episode import (
    Episode,
    Message,
    OtherPart,
    OutcomeHistory,
    Part,
    RecordedCall,
    SampledTokens,
    TextPart,
    ToolCallPart,
)
from nightschool.errors import NightError
from nightschool.outcomes.record import Outcome
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.episodes.reasons import DropReason, reason_of
from nightschool_nightly.examples.example import Selection, load_selection
from nightschool_nightly.examples.references import References, find_references
from nightschool_nightly.examples.select import select_examples
from nightschool_nightly.examples.split import is_held_out
from nightschool_nightly.freeze.serving_defaults import ServingDefaults
from nightschool_nightly.rewards.rubric import Rubric, parse_rubric

RUBRIC = parse_rubric('task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"')
CHECKS = parse_rubric('task = "triage"\n[[items]]\nname = "short"\nkind = "check"\ncheck = "length"\nmax_chars = 9')
WHOLE = NightConfig(max_share_per_user=1.0)


class Letters:
    """A tokenizer whose tokens are characters; it knows no role but user, assistant and system."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> list[int]:
        assert options["add_generation_prompt"] and options["tokenize"] and not options["return_dict"]
        if any(message["role"] not in ("user", "assistant", "system") for message in conversation):
            raise TemplateError("unknown role")
        return [ord(letter) for letter in json.dumps([conversation, options["tools"]])]

    def encode(self, text: str, **options: Any) -> list[int]:
        assert not options["add_special_tokens"]
        return [ord(letter) for letter in text]


def outcome(value: Any = "fraud", **fields: Any) -> OutcomeHistory:
    found = Outcome(**{"target": {"response_id": "r"}, "name": "queue", "value": value, **fields})
    return OutcomeHistory(found, (found,))


def call(
    number: int = 1, *, message: Part | None = None, answer: Part | None = None, role: str = "user", **fields: Any
) -> RecordedCall:
    return RecordedCall(
        span_id=f"{number:016x}",
        messages=(Message(role, (message or TextPart(f"message {number}"),)),),
        answer=Message("assistant", (answer or TextPart("card"),)),
        **fields,
    )


def episode(number: int, *, new: bool = True, outcomes: Sequence[OutcomeHistory] = (), **fields: Any) -> BuiltEpisode:
    plain: dict[str, Any] = {
        "tenant": "acme",
        "trace_id": f"{number:032x}",
        "task": "triage",
        "subject": f"user-{number}",
        "conversation": None,
        "started_ns": number,
        "calls": (call(number),),
        "outcomes": tuple(outcomes) or (outcome(),),
    }
    return BuiltEpisode(Episode(**{**plain, **fields}), new)


def select(
    built: Sequence[BuiltEpisode],
    *,
    settings: NightConfig = WHOLE,
    rubric: Rubric = RUBRIC,
    max_model_len: int = 2048,
    **serving: Any,
) -> Selection:
    return select_examples(
        built,
        tenant="acme",
        settings=settings,
        rubrics={"triage": rubric},
        tokenizer=Letters(),
        serving=ServingDefaults(max_model_len, **serving),
    )


def everything(selection: Selection) -> list[Any]:
    return [*selection.train, *selection.holdout]


# --- the split ----------------------------------------------------------------------------------------------------------
def test_no_user_learns_and_tests() -> None:
    """Every example of a user is on one side, and about a quarter of the users tests."""
    built = [episode(number, subject=f"user-{number % 100}") for number in range(1, 301)]
    selection = select(built)
    train, holdout = ({example.cluster for example in part} for part in (selection.train, selection.holdout))
    assert not train & holdout and len(train | holdout) == 100
    assert 15 <= len(holdout) <= 35
    assert len(everything(selection)) == 300


def test_a_user_stays_on_one_side_every_night() -> None:
    """The side depends on the user alone: neither other traffic nor a larger share makes a tester train."""
    users = [f"user-{number}" for number in range(300)]
    held = {user for user in users if is_held_out("acme", user, 0.25)}
    night = select([episode(number, subject=user) for number, user in enumerate(users[100:200], start=1)])
    assert {example.cluster for example in night.holdout} == held & set(users[100:200])
    assert held < {user for user in users if is_held_out("acme", user, 0.5)}
    assert held != {user for user in users if is_held_out("globex", user, 0.25)}


def test_where_no_user_is_named_the_conversation_counts_as_one_and_then_the_trace() -> None:
    """The turns of an anonymous conversation repeat each other, so none of them may test what another has trained."""
    built = [episode(number, subject=None, conversation=f"c{number % 3}") for number in range(1, 9)]
    built += [episode(number, subject=None) for number in range(11, 15)]
    clusters = {example.trace_id: example.cluster for example in everything(select(built))}
    assert clusters == {
        **{f"{number:032x}": f"c{number % 3}" for number in range(1, 9)},
        **{f"{number:032x}": f"{number:032x}" for number in range(11, 15)},
    }


# --- what an example holds ----------------------------------------------------------------------------------------------
def test_an_example_is_the_last_call_of_its_trace() -> None:
    """Prompt, production's answer, what the human chose, and production's sampling settings."""
    request = {"max_tokens": 5, "temperature": 0.25, "top_p": 0.5, "stop_sequences": ["\n"], "top_k": 3}
    calls = (call(1), call(2, request=request, tokens=SampledTokens((7, 8), (9,), (-0.1,))))
    (example,) = everything(select([episode(1, calls=calls)]))
    assert (example.prompt_ids, example.message, example.answer) == ((7, 8), "message 2", "card")
    assert (example.references, example.demonstration) == ({"queue": "fraud"}, "fraud")
    assert (example.max_tokens, example.temperature, example.top_p, example.stop) == (5, 0.25, 0.5, ("\n",))
    assert example.others == {"top_k": 3}


@pytest.mark.parametrize("tokenizer", ["b" * 64, None])
def test_tokens_of_another_tokenizer_are_not_trusted(tokenizer: str | None) -> None:
    """Ids mean nothing to another tokenizer: the prompt is rendered from its messages, and that is counted."""
    tokens = {"ours": "a" * 64, "theirs": tokenizer}
    ours, theirs = (
        select_examples(
            [episode(1, calls=(call(1, tokens=SampledTokens((7, 8), (9,), (-0.1,), digest)),))],
            tenant="acme",
            settings=WHOLE,
            rubrics={"triage": RUBRIC},
            tokenizer=Letters(),
            serving=ServingDefaults(2048),
            tokenizer_digest="a" * 64,
        )
        for digest in tokens.values()
    )
    rendered = everything(select([episode(1)]))[0].prompt_ids
    assert (everything(ours)[0].prompt_ids, ours.dropped) == ((7, 8), {})
    assert (everything(theirs)[0].prompt_ids, theirs.dropped) == (rendered, {DropReason.OTHER_TOKENIZER: 1})


def test_a_bare_completion_is_never_put_into_a_chat_template() -> None:
    """Its prompt is what the server's token ids say, or it is left out."""
    tokens = SampledTokens((7, 8), (9,), (-0.1,))
    built = [episode(1, calls=(call(1, is_chat=False),)), episode(2, calls=(call(2, is_chat=False, tokens=tokens),))]
    selection = select(built)
    assert [example.prompt_ids for example in everything(selection)] == [(7, 8)]
    assert selection.dropped == {DropReason.NOT_CHAT: 1}


def test_without_the_servers_tokens_the_chat_template_renders_the_prompt() -> None:
    """Messages and tools go through the tokenizer's own template, with production's defaults for what was not sent."""
    tool = {"type": "function", "function": {"name": "lookup"}}
    (example,) = everything(select([episode(1, calls=(call(1, tools=(tool,)),))]))
    assert "".join(map(chr, example.prompt_ids)) == json.dumps([[{"role": "user", "content": "message 1"}], [tool]])
    assert (example.temperature, example.top_p, example.stop, example.others) == (1.0, 1.0, (), {})
    (example,) = everything(select([episode(1)], sampling={"temperature": 0.5, "top_k": 20}))
    assert (example.temperature, example.others) == (0.5, {"top_k": 20})


def test_without_a_limit_of_its_own_production_cuts_where_serving_does() -> None:
    """The request's limit, else the configured one, else the model's, else what is left of its window; 16 for completions."""

    def limit(request: dict[str, Any], *, is_chat: bool = True, **serving: Any) -> int:
        tokens = SampledTokens(tuple(range(90)), (1,), (-0.1,))
        built = [episode(1, calls=(call(1, request=request, tokens=tokens, is_chat=is_chat),))]
        (example,) = everything(select(built, max_model_len=600, **serving))
        return int(example.max_tokens)

    assert limit({}) == 510
    assert limit({}, model_max_tokens=100) == 100
    assert limit({}, model_max_tokens=100, default_max_tokens=200) == 200
    assert limit({"max_tokens": 7}, default_max_tokens=200) == 7
    assert limit({"max_tokens": 599}) == 510
    assert limit({}, is_chat=False, default_max_tokens=200) == 16


def test_rollouts_may_be_twice_the_longest_answer_of_a_human() -> None:
    """Without one, of production; never longer than production may, nor shorter than 64: a limit must not teach brevity."""
    learns = [f"u{n}" for n in range(99) if not is_held_out("acme", f"u{n}", 0.25)]
    held = next(f"u{n}" for n in range(99) if is_held_out("acme", f"u{n}", 0.25))

    def limits(*written: str, said: str = "card", tested: str = "x", settings: NightConfig = WHOLE, **request: Any) -> set[int]:
        built = [
            episode(n, subject=user, outcomes=[outcome(text)], calls=(call(n, answer=TextPart(said), request=request),))
            for n, (user, text) in enumerate([*zip(learns, written, strict=False), (held, tested)], start=1)
        ]
        return {example.rollout_tokens for example in select(built, settings=settings).train}

    assert limits("ok", "fine") == {64}
    assert limits("ok", "a" * 99) == {200}  # an end of turn is one of its tokens
    assert limits("ok", tested="a" * 99) == {64}  # nobody looks at what only tests
    assert limits("ok", said="a" * 999) == {64}  # how long the model went on says nothing about right answers
    assert limits("a" * 99, max_tokens=150) == {150}
    assert limits("a" * 99, settings=replace(WHOLE, max_tokens=10)) == {10}
    unwritten = episode(1, subject=learns[0], outcomes=(), calls=(call(1, answer=TextPart("b" * 99)),))
    (train,) = select([unwritten], rubric=CHECKS).train
    assert train.rollout_tokens == 200


def test_a_rubric_of_checks_needs_no_outcome() -> None:
    """Without outcome items an episode counts as it is, with no human answer to learn from."""
    built = episode(1)
    (example,) = everything(select([replace(built, episode=replace(built.episode, outcomes=()))], rubric=CHECKS))
    assert (example.references, example.demonstration) == ({}, None)


# --- what the right answer is ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("histories", "expected"),
    [
        ([outcome("fraud")], References({"queue": "fraud"}, "fraud")),
        ([outcome(None, final_text="fraud")], References({"queue": "fraud"}, "fraud")),
        ([outcome("fraud", source_id="a"), outcome("fraud", source_id="b")], References({"queue": "fraud"}, "fraud")),
        ([outcome("fraud", source_id="a"), outcome("loan", source_id="b")], DropReason.CONFLICT),
        # A thumb or a rating says nothing about what is right: neither up nor down does, and neither conflicts with a text.
        ([outcome(True)], DropReason.OUTCOME_WITHOUT_TEXT),
        ([outcome(False)], DropReason.OUTCOME_WITHOUT_TEXT),
        ([outcome(1.0)], DropReason.OUTCOME_WITHOUT_TEXT),
        ([outcome(None)], DropReason.OUTCOME_WITHOUT_TEXT),
        ([outcome(True, source_id="a"), outcome("fraud", source_id="b")], References({"queue": "fraud"}, "fraud")),
        ([outcome(False, source_id="a"), outcome("card", source_id="b")], References({"queue": "card"}, "card")),
        # What no human wrote is compared with and never imitated.
        ([outcome("fraud", source_kind="llm")], References({"queue": "fraud"}, None)),
        ([outcome(None, final_text="fraud", source_kind="code")], References({"queue": "fraud"}, None)),
        ([outcome("fraud", source_kind="system")], References({"queue": "fraud"}, None)),
        ([outcome("fraud", source_kind="llm"), outcome("loan", source_kind="code")], DropReason.CONFLICT),
        ([outcome("fraud", source_kind="llm"), outcome("loan")], References({"queue": "loan"}, "loan")),
        ([outcome("fraud", name="mood")], DropReason.NO_OUTCOME),
        ([], DropReason.NO_OUTCOME),
    ],
)
def test_only_a_text_says_what_is_right_and_only_a_humans_is_imitated(histories: list[OutcomeHistory], expected: Any) -> None:
    """Approval turns no answer of the model into a human's, a label of a model is no demonstration, two choices are no choice."""
    assert find_references(call(), histories, RUBRIC) == expected


def test_the_current_outcome_counts_not_its_history() -> None:
    """A corrected choice replaces the earlier one and does not conflict with it."""
    now = outcome("loan").current
    found = find_references(call(), [OutcomeHistory(now, (outcome("fraud").current, now))], RUBRIC)
    assert found == References({"queue": "loan"}, "loan")


def test_two_references_are_no_demonstration() -> None:
    """With two outcomes no single text is the human's answer to the prompt."""
    rubric = parse_rubric(
        "".join(
            ['task = "triage"', *(f'\n[[items]]\nname = "{n}"\nkind = "outcome"\noutcome = "{n}"' for n in ("queue", "mood"))]
        )
    )
    (example,) = everything(select([episode(1, outcomes=[outcome(), outcome("good", name="mood")])], rubric=rubric))
    assert (example.references, example.demonstration) == ({"queue": "fraud", "mood": "good"}, None)


# --- what is left out ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("built", "reason"),
    [
        (episode(1, new=False, outcomes=[outcome(name="mood")]), DropReason.SEEN),
        (episode(1, task="reply"), DropReason.NO_RUBRIC),
        (episode(1, calls=(call(answer=ToolCallPart("lookup")),)), DropReason.NOT_TEXT_ANSWER),
        (episode(1, calls=(call(message=OtherPart({"type": "blob"})),)), DropReason.NOT_TEXT_PROMPT),
        (episode(1, calls=(call(role="wizard"),)), DropReason.NO_TEMPLATE),
        (episode(1, outcomes=[outcome(name="mood")]), DropReason.NO_OUTCOME),
        (episode(1, outcomes=[outcome(False)]), DropReason.OUTCOME_WITHOUT_TEXT),
        (episode(1, outcomes=[outcome("a", source_id="a"), outcome("b", source_id="b")]), DropReason.CONFLICT),
        (episode(1, calls=(call(message=TextPart("x" * 2048)),)), DropReason.TOO_LONG),
    ],
)
def test_every_drop_has_a_name_and_a_count(built: BuiltEpisode, reason: DropReason) -> None:
    """What is left out is counted under its reason, and nothing else changes."""
    other = episode(2)
    selection = select([built, other])
    assert selection.dropped == {reason: 1}
    assert [example.trace_id for example in everything(selection)] == [other.episode.trace_id]
    assert selection.num_new_episodes == 1 + built.is_new


def test_a_prompt_leaves_room_for_an_answer_or_is_too_long() -> None:
    """What does not fit beside the prompt is cut down by serving, so it is here; without room for a token it is left out."""
    tokens = SampledTokens(tuple(range(90)), (1,), (-0.1,))
    built = [episode(1, calls=(call(1, request={"max_tokens": 10}, tokens=tokens),))]
    assert [example.max_tokens for example in everything(select(built, max_model_len=91))] == [1]
    assert select(built, max_model_len=90).dropped == {DropReason.TOO_LONG: 1}


def test_a_request_that_vllm_would_refuse_is_left_out_by_name() -> None:
    """It would stop the night, and every night after it; what it was about is in the count's name."""
    selection = select([episode(1, calls=(call(1, request={"stop_sequences": [""]}),)), episode(2)])
    assert selection.dropped == {"request-parameter-refused (stop_sequences)": 1}
    assert reason_of(*selection.dropped) is DropReason.REQUEST_REFUSED
    assert len(everything(selection)) == 1


# --- file ---------------------------------------------------------------------------------------------------------------
def test_a_selection_survives_its_file(tmp_path: Path) -> None:
    """What is read back is what was written, to the last field."""
    selection = select(
        [
            *(episode(number, calls=(call(number, request={"stop_sequences": "x"}),)) for number in range(1, 20)),
            episode(30, new=False),
        ]
    )
    (tmp_path / "selection.json").write_text(selection.to_json())
    assert load_selection(tmp_path / "selection.json") == selection
    assert load_selection(tmp_path / "selection.json").to_json() == selection.to_json()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"train": [{}], "holdout": [], "dropped": {}, "num_new_episodes": 0}'])
def test_a_damaged_selection_is_refused(text: str, tmp_path: Path) -> None:
    """A file that is not a selection stops the night with what to do."""
    (tmp_path / "selection.json").write_text(text)
    with pytest.raises(NightError, match=r"cannot be read .* start the night without --resume"):
        load_selection(tmp_path / "selection.json")


def test_what_the_doctor_sends_is_never_learned_from() -> None:
    """A marked request is left out under its own name, even where a rubric has the reserved task."""
    rubric = parse_rubric(f'task = "{names.DOCTOR_TASK}"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"')
    selection = select_examples(
        [episode(1, task=names.DOCTOR_TASK)],
        tenant="acme",
        settings=WHOLE,
        rubrics={names.DOCTOR_TASK: rubric},
        tokenizer=Letters(),
        serving=ServingDefaults(2048),
    )
    assert everything(selection) == [] and selection.dropped == {DropReason.DOCTOR: 1}


def test_a_watcher_sees_the_fate_of_every_new_episode() -> None:
    """The example, or why there is none; not an episode that an earlier night has seen."""
    seen: dict[str, Any] = {}
    selection = select_examples(
        [episode(1), episode(2, task="other"), episode(3, new=False, task="other")],
        tenant="acme",
        settings=WHOLE,
        rubrics={"triage": RUBRIC},
        tokenizer=Letters(),
        serving=ServingDefaults(2048),
        watch=lambda found, fate: seen.update({found.trace_id: fate}),
    )
    assert seen == {f"{1:032x}": everything(selection)[0], f"{2:032x}": DropReason.NO_RUBRIC}
