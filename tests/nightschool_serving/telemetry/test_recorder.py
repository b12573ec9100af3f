"""The recording proxy, in front of an engine that answers from a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nightschool_serving.telemetry.recorder import Recording, RecordingEngine, current_recording


class ScriptedEngine:
    """Yields the outputs it was given; notes the parameters and whether it was closed."""

    def __init__(self, outputs: list[Any]) -> None:
        self.outputs, self.params, self.closed = outputs, [], False
        self.model_config = "the engine's own"

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **_: Any) -> AsyncIterator[Any]:
        self.params.append(sampling_params.logprobs)
        try:
            for output in self.outputs:
                yield output
        finally:
            self.closed = True


def params(logprobs: int | None = None) -> Any:
    return SimpleNamespace(logprobs=logprobs, num_logprobs=logprobs)


def output(tokens: list[int], *, index: int = 0, prompt: list[int] | None = None, finish: str | None = None) -> Any:
    logprobs = [{token: SimpleNamespace(logprob=-token / 10), 99: SimpleNamespace(logprob=-9.0)} for token in tokens]
    sampled = SimpleNamespace(index=index, token_ids=tokens, logprobs=logprobs, cumulative_logprob=-1.0, finish_reason=finish)
    return SimpleNamespace(prompt_token_ids=prompt, outputs=[sampled])


@pytest.fixture
def recording() -> Iterator[Recording]:
    recording = Recording()
    token = current_recording.set(recording)
    yield recording
    current_recording.reset(token)


async def test_streamed_tokens_are_recorded_with_their_logprobs(recording: Recording) -> None:
    """Deltas add up to the whole answer, each token with the log-probability it was sampled with."""
    engine = ScriptedEngine([output([1, 2], prompt=[7, 8]), output([]), output([3], finish="stop")])
    async for _ in RecordingEngine(engine).generate("p", params(), "id"):
        pass
    choice = recording.choices[(0, 0)]
    assert recording.prompts == [[7, 8]]
    assert (choice.token_ids, choice.logprobs, choice.finish_reason) == ([1, 2, 3], [-0.1, -0.2, -0.3], "stop")
    assert recording.first_token_ns is not None


async def test_the_client_sees_no_logprobs_it_did_not_ask_for(recording: Recording) -> None:
    """They are computed for the record and removed from the answer."""
    engine = ScriptedEngine([output([1])])
    seen = [answer async for answer in RecordingEngine(engine).generate("p", params(), "id")]
    assert engine.params == [0]
    assert (seen[0].outputs[0].logprobs, seen[0].outputs[0].cumulative_logprob) == (None, None)


async def test_the_client_keeps_the_logprobs_it_asked_for(recording: Recording) -> None:
    """A request for the top five is passed on and answered unchanged."""
    engine = ScriptedEngine([output([1])])
    seen = [answer async for answer in RecordingEngine(engine).generate("p", params(5), "id")]
    assert engine.params == [5]
    assert seen[0].outputs[0].logprobs is not None
    assert recording.choices[(0, 0)].logprobs == [-0.1]


async def test_several_prompts_and_choices_are_kept_apart(recording: Recording) -> None:
    """Each answer is recorded by its prompt and its number."""
    proxy = RecordingEngine(ScriptedEngine([output([1], index=0, prompt=[7]), output([2], index=1)]))
    for request in ("a", "b"):
        async for _ in proxy.generate(request, params(), request):
            pass
    assert {key: choice.token_ids for key, choice in recording.choices.items()} == {
        (0, 0): [1],
        (0, 1): [2],
        (1, 0): [1],
        (1, 1): [2],
    }


async def test_leaving_early_closes_the_engines_generator(recording: Recording) -> None:
    """That is how vLLM learns to stop generating for a client that went away."""
    engine = ScriptedEngine([output([1]), output([2])])
    answers = RecordingEngine(engine).generate("p", params(), "id")
    await anext(answers)
    await answers.aclose()
    assert engine.closed
    assert recording.choices[(0, 0)].token_ids == [1]


async def test_a_request_outside_a_recording_is_untouched() -> None:
    """Smoke requests and all others without a recording are passed on unchanged."""
    engine = ScriptedEngine([output([1])])
    seen = [answer async for answer in RecordingEngine(engine).generate("p", params(), "id")]
    assert engine.params == [None]
    assert seen[0].outputs[0].logprobs is not None


def test_everything_else_is_the_engines_own() -> None:
    """In every other respect the proxy is the engine client."""
    assert RecordingEngine(ScriptedEngine([])).model_config == "the engine's own"
