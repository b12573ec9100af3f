"""How production sampled an answer, as far as a night can do the same.

A night asks vLLM, so a request that vLLM would refuse would stop it, and every night after it. And a request with a
parameter that a night does not pass on would be tested under other conditions than production has. Both are left out
by name. The bounds are those of `vllm.SamplingParams` and of vLLM's chat endpoint; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nightschool import semconv as names
from nightschool.episode import RecordedCall
from nightschool_nightly.episodes.reasons import DropReason, LeftOut

_MAX_STOPS = 4  # of vLLM's endpoints (VLLM_MAX_STOP_STRINGS): serving refuses more
_MAX_TOKENS = 2**31 - 1  # more is no number of tokens, and what counts them has 32 bits


@dataclass(frozen=True, slots=True)
class RequestSampling:
    """The sampling parameters of one request, checked. None and what is absent were not sent: serving's defaults hold."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)
    """Those of `OTHERS` that were sent, by their names in request bodies."""


def sampling_of(call: RecordedCall, *, are_tokens_ours: bool, max_model_len: int) -> RequestSampling | LeftOut:
    """The parameters of a call, or why a night cannot sample by them.

    `are_tokens_ours` says that our own server recorded the call under this base model's tokenizer. Only then do token
    ids in a parameter mean what they say, and then the ids of the prompt hold all that shaped it.
    """
    unneeded = _NOT_PASSED_ON | (names.PROMPT_PARAMETERS if are_tokens_ours else set())
    sent = {
        name: value
        for name, value in call.request.items()
        if name not in unneeded and not (name in _DOES_NOTHING and value == _DOES_NOTHING[name])
    }
    for name, value in sorted(sent.items()):
        check = _CHECKS.get(name)
        if check is None or (name in _BY_TOKEN_ID and not are_tokens_ours):
            return LeftOut(DropReason.REQUEST_NOT_REPLAYED, name)
        if not check(value):
            return LeftOut(DropReason.REQUEST_REFUSED, name)
    least, most = int(sent.get("min_tokens", 0)), sent.get("max_tokens")
    if most is not None and least > most:
        return LeftOut(DropReason.REQUEST_REFUSED, "min_tokens")
    if most is not None and most > max_model_len:  # more than fits beside the prompt is cut down, this is refused
        return LeftOut(DropReason.REQUEST_REFUSED, "max_tokens")
    stop = sent.get("stop_sequences", ())
    return RequestSampling(
        max_tokens=None if most is None else int(most),
        temperature=_float(sent.get("temperature")),
        top_p=_float(sent.get("top_p")),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        others={name: int(sent[name]) if name in _WHOLE else sent[name] for name in sorted(OTHERS & sent.keys())},
    )


@dataclass(frozen=True, slots=True)
class ServedSampling:
    """What production really samples with."""

    temperature: float
    top_p: float
    others: Mapping[str, Any]


def as_served(asked: RequestSampling, defaults: Mapping[str, float]) -> ServedSampling:
    """What was asked for, then the model's own `defaults`, then those of the API, as vLLM fills them in."""
    others = {name: value for name, value in defaults.items() if name not in _OF_THEIR_OWN} | dict(asked.others)
    return ServedSampling(
        temperature=asked.temperature if asked.temperature is not None else float(defaults.get("temperature", 1.0)),
        top_p=asked.top_p if asked.top_p is not None else float(defaults.get("top_p", 1.0)),
        others=dict(sorted(others.items())),
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


# --- what vLLM accepts --------------------------------------------------------------------------------------------------
def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high


def _is_whole(value: Any, low: int, high: int = _MAX_TOKENS) -> bool:
    """Whether it is a whole number; 20.0 is one, as an attribute that was a double may hold it."""
    return _is_number(value, low, high) and value == int(value)


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and len(texts) <= _MAX_STOPS and all(isinstance(text, str) and text for text in texts)


def _is_logit_bias(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(token, str) and token.isdecimal() and _is_number(bias, -100, 100) for token, bias in value.items()
    )


def _is_response_format(value: Any) -> bool:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_schema":
        held = value.get("json_schema")
        return isinstance(held, dict) and isinstance(held.get("schema"), dict)
    return kind in ("text", "json_object")


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "temperature": lambda value: _is_number(value, 0, 2),
    "top_p": lambda value: _is_number(value, 0, 1) and value > 0,
    "max_tokens": lambda value: _is_whole(value, 1),
    "stop_sequences": _is_stop,
    "top_k": lambda value: _is_whole(value, -1),
    "min_p": lambda value: _is_number(value, 0, 1),
    "presence_penalty": lambda value: _is_number(value, -2, 2),
    "frequency_penalty": lambda value: _is_number(value, -2, 2),
    "repetition_penalty": lambda value: _is_number(value, 0, math.inf) and value > 0,
    "min_tokens": lambda value: _is_whole(value, 0),
    "logit_bias": _is_logit_bias,
    "response_format": _is_response_format,
}
_OF_THEIR_OWN = {"temperature", "top_p", "max_tokens", "stop_sequences"}
OTHERS = frozenset(_CHECKS) - _OF_THEIR_OWN
"""The parameters that `RequestSampling.others` may hold."""
_BY_TOKEN_ID = {"logit_bias"}
_WHOLE = {"top_k", "min_tokens"}
# A night draws with seeds of its own.
_NOT_PASSED_ON = {"seed"}
# Values that say the same as no value.
_DOES_NOTHING: Mapping[str, Any] = {
    "allowed_token_ids": [],
    "bad_words": [],
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "skip_special_tokens": True,
    "stop_token_ids": [],
    "use_beam_search": False,
}
