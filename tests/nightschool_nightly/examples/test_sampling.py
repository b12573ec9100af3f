"""What a night makes of the sampling parameters of a request: taken over as sent, or the episode is left out by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nightschool.episode import Message, RecordedCall, TextPart
from nightschool_nightly.episodes.reasons import DropReason, LeftOut, reason_of
from nightschool_nightly.examples.sampling import OTHERS, RequestSampling, ServedSampling, as_served, sampling_of

LONG = {"max_position_embeddings": 4096}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
ACCEPTED: dict[str, list[Any]] = {
    "temperature": [0, 0.0, 0.7, 2],
    "top_p": [0.01, 1],
    "top_k": [-1, 0, 20],
    "min_p": [0, 0.5, 1],
    "presence_penalty": [-2, 0, 1.5],
    "frequency_penalty": [-2, 0, 2],
    "repetition_penalty": [0.1, 1.0, 3],
    "max_tokens": [1, 4096],
    "min_tokens": [0, 3],
    "stop_sequences": ["x", ["a", "b", "c", "d"], []],
    "logit_bias": [{}, {"3": -100, "7": 2.5}],
    "response_format": [{"type": "text"}, {"type": "json_object"}, SCHEMA],
}
REFUSED: dict[str, list[Any]] = {
    "temperature": [-0.1, 2.1, float("nan"), float("inf"), "hot"],
    "top_p": [0, -1, 1.01, float("nan")],
    "top_k": [-2, 2.5],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, -1, float("inf")],
    "max_tokens": [0, -4, 4097],
    "min_tokens": [-1],
    "stop_sequences": [[""], ["a", ""], ["a", "b", "c", "d", "e"], [3], {"a": 1}],
    "logit_bias": [{"a": 1}, [1], "x"],
    "response_format": [{"type": "json_schema"}, {"type": "prose"}, "json"],
}


def call(**request: Any) -> RecordedCall:
    return RecordedCall("1" * 16, (Message("user", (TextPart("hi"),)),), Message("assistant", (TextPart("ho"),)), request=request)


def read(*, ours: bool = True, **request: Any) -> RequestSampling | LeftOut:
    return sampling_of(call(**request), are_tokens_ours=ours, max_model_len=4096)


def test_what_was_sent_is_taken_over_and_nothing_else() -> None:
    """Each parameter as the app sent it; one that was not sent is left to serving's defaults, not set to ours."""
    assert read() == RequestSampling()
    sent = {"max_tokens": 16, "temperature": 0, "top_p": 0.5, "stop_sequences": "\n", "top_k": 20, "min_p": 0.1, "seed": 3}
    assert read(**sent) == RequestSampling(16, 0.0, 0.5, ("\n",), {"top_k": 20, "min_p": 0.1})
    assert read(response_format={"type": "text"}, logit_bias={}, stop_sequences=[]) == RequestSampling()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_parameter_that_vllm_refuses_leaves_the_episode_out_by_its_name(name: str, value: Any) -> None:
    """One odd request of an app must not stop this night and every night after it."""
    assert read(**{name: value}) == LeftOut(DropReason.REQUEST_REFUSED, name)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ACCEPTED.items() for value in values])
def test_a_parameter_that_vllm_accepts_is_taken_over(name: str, value: Any) -> None:
    """What serving would do, a night does."""
    assert isinstance(read(**{name: value}), RequestSampling)


def test_fewest_and_most_tokens_fit_together() -> None:
    """vLLM refuses a request whose answer must be longer than it may be."""
    assert read(min_tokens=5, max_tokens=4) == LeftOut(DropReason.REQUEST_REFUSED, "min_tokens")
    assert isinstance(read(min_tokens=4, max_tokens=4), RequestSampling)


@pytest.mark.parametrize(
    "name", ["stop_token_ids", "use_beam_search", "chat_template_kwargs", "something_new", "nightschool.request.parameters"]
)
def test_a_parameter_that_a_night_does_not_pass_on_leaves_the_episode_out(name: str) -> None:
    """Known or not: without it the answers would be sampled under other conditions than production's."""
    found = read(ours=False, **{name: None})
    assert found == LeftOut(DropReason.REQUEST_NOT_REPLAYED, name)
    assert reason_of(str(found)) is DropReason.REQUEST_NOT_REPLAYED


def test_a_value_that_says_the_same_as_none_is_no_parameter() -> None:
    """A client that always sends a default asks for nothing."""
    assert read(ignore_eos=False, stop_token_ids=[], skip_special_tokens=True) == RequestSampling()
    assert read(ignore_eos=True) == LeftOut(DropReason.REQUEST_NOT_REPLAYED, "ignore_eos")


def test_what_shaped_the_prompt_is_in_its_token_ids() -> None:
    """Options of the chat template leave out only an episode whose prompt must be rendered without them."""
    assert read(ours=True, chat_template_kwargs=None) == RequestSampling()


def test_serving_fills_in_what_was_not_asked_for() -> None:
    """First the request, then the model's own default, then the API's."""
    assert as_served(read_sampling(), {}) == ServedSampling(1.0, 1.0, {})
    defaults = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1}
    assert as_served(read_sampling(), defaults) == ServedSampling(0.6, 0.95, {"top_k": 20, "repetition_penalty": 1.1})
    asked = read_sampling(temperature=0, top_k=-1, min_p=0.1)
    assert as_served(asked, defaults) == ServedSampling(0.0, 0.95, {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1})


def read_sampling(**request: Any) -> RequestSampling:
    found = read(**request)
    assert isinstance(found, RequestSampling)
    return found


def test_token_ids_of_another_tokenizer_mean_nothing_here() -> None:
    """A bias on token 3 is on another text under another tokenizer."""
    assert read(ours=False, logit_bias={"3": 1.0}) == LeftOut(DropReason.REQUEST_NOT_REPLAYED, "logit_bias")
    assert read(ours=True, logit_bias={"3": 1.0}) == RequestSampling(others={"logit_bias": {"3": 1.0}})


def test_a_name_that_is_no_name_is_not_shown() -> None:
    """A client chooses the names of its parameters, and a report shows them."""
    for name in ("\x1b[31m", "a b", "x" * 41):
        assert str(LeftOut(DropReason.REQUEST_NOT_REPLAYED, name)) == f"{DropReason.REQUEST_NOT_REPLAYED} (others)"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when vLLM is imported
@pytest.mark.vllm
@pytest.mark.slow
def test_the_bounds_are_those_of_vllm(tiny_model: Path) -> None:
    """vLLM's own request classes accept what is accepted here, and refuse what is refused."""
    from vllm.config import ModelConfig
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.exceptions import VLLMClientError

    model = ModelConfig(str(tiny_model), skip_tokenizer_init=True, max_model_len=4096, hf_overrides=LONG)

    def accepts(name: str, value: Any) -> bool:
        body = {"messages": [{"role": "user", "content": "hi"}], "stop" if name == "stop_sequences" else name: value}
        try:
            request = ChatCompletionRequest.model_validate(body)
            request.build_tok_params(model)
            request.to_sampling_params(request.max_tokens if request.max_tokens is not None else 100, {})
        except (ValueError, VLLMClientError):
            return False
        return True

    odd = [(name, value) for name, values in ACCEPTED.items() for value in values if not accepts(name, value)]
    odd += [(name, value) for name, values in REFUSED.items() for value in values if accepts(name, value)]
    assert odd == [] and ACCEPTED.keys() > OTHERS
