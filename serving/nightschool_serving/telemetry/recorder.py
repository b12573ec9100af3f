"""Records the tokens that the engine sampled for a request. Answers are not changed.

A proxy in front of the engine client of vLLM's handlers. The log-probabilities of the sampled tokens are always
computed; if the client did not ask for them they are removed before the handler sees the output.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Choice:
    """One sampled answer."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(slots=True)
class Recording:
    """What the engine was given and what it sampled for one request."""

    prompts: list[list[int]] = field(default_factory=list)
    """Token ids of each prompt; a completions request may hold several."""
    choices: dict[tuple[int, int], Choice] = field(default_factory=dict)
    """By prompt and choice number."""
    first_token_ns: int | None = None
    """Nanoseconds since 1970; None before the first token."""


current_recording: ContextVar[Recording | None] = ContextVar("nightschool_recording", default=None)
"""Set by the route before it calls vLLM's handler; the tasks that the handler starts inherit it."""


class RecordingEngine:
    """The engine client, with `generate` recorded. Everything else is the engine client's own."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> Any:
        recording = current_recording.get()
        if recording is None:
            return self._client.generate(prompt, sampling_params, request_id, **kwargs)
        asked = sampling_params.num_logprobs is not None
        if not asked:
            sampling_params.logprobs = 0  # the sampled token alone, without the likeliest others
        number = len(recording.prompts)
        recording.prompts.append([])
        return _record(self._client.generate(prompt, sampling_params, request_id, **kwargs), recording, number, asked=asked)


async def _record(outputs: Any, recording: Recording, number: int, *, asked: bool) -> AsyncIterator[Any]:
    # Closing the outputs tells vLLM that the client went away, and it stops generating.
    async with aclosing(outputs):
        async for output in outputs:
            if output.prompt_token_ids and not recording.prompts[number]:
                recording.prompts[number] = output.prompt_token_ids
            for sampled in output.outputs:
                choice = recording.choices.setdefault((number, sampled.index), Choice())
                _take(choice, sampled)
                if not asked:
                    sampled.logprobs = None
                    sampled.cumulative_logprob = None
            if recording.first_token_ns is None:
                recording.first_token_ns = time.time_ns()
            yield output


def _take(choice: Choice, sampled: Any) -> None:
    """Add an output to the answer; vLLM's handlers ask for deltas or one final output, never for cumulative ones."""
    token_ids = list(sampled.token_ids)
    choice.token_ids += token_ids
    choice.finish_reason = sampled.finish_reason or choice.finish_reason
    if sampled.logprobs is not None:
        choice.logprobs += [entry[token].logprob for entry, token in zip(sampled.logprobs, token_ids, strict=True)]
