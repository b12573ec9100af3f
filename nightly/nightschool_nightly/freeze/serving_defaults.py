"""What serving does with a request that does not say it itself: limits, and the model's own sampling defaults.

A night tests a candidate as users will meet it. So it has to know what vLLM fills in, and freezes it: another limit or
another default is another night.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nightschool.config.settings import ServingConfig
from nightschool.errors import NightError

# What vLLM takes out of a model's generation_config.json (`ModelConfig.get_diff_sampling_param`), by its name there.
_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_LIMIT = "max_new_tokens"
# vLLM's own for `/v1/completions`, as OpenAI's: there null is no limit of its own either.
_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ServingDefaults:
    """What one serving fills in."""

    max_model_len: int
    """Longest prompt and answer together, in tokens."""
    default_max_tokens: int = 0
    """Longest answer to a chat request without a limit, as configured; 0 is none."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Parameters of a request that the model itself has defaults for, by their names in request bodies."""
    model_max_tokens: int = 0
    """Longest answer that the model itself names as a default; 0 is none."""

    def answer_limit(self, own: int | None, *, prompt_tokens: int, is_chat: bool) -> int:
        """Where serving cuts an answer, in tokens; below 1 when the prompt leaves no room. `own` is the request's limit."""
        if own is None:
            own = (self.default_max_tokens or self.model_max_tokens) if is_chat else _COMPLETION_TOKENS
        room = self.max_model_len - prompt_tokens
        return min(own, room) if own else room

    def to_json(self) -> dict[str, Any]:
        """As a night's manifest holds it."""
        return asdict(self)


def serving_defaults(serving: ServingConfig, model: Path) -> ServingDefaults:
    """What serving with these settings fills in for the base model in the folder `model`."""
    found = _read(model / "generation_config.json")
    if found is None:
        # vLLM looks into config.json then, out of which transformers takes the limit and no sampling parameter.
        found = {_LIMIT: (_read(model / "config.json") or {}).get(_LIMIT)}
    return ServingDefaults(
        max_model_len=serving.max_model_len,
        default_max_tokens=serving.default_max_tokens,
        sampling={name: found[name] for name in _DEFAULTS if found.get(name) is not None},
        model_max_tokens=found.get(_LIMIT) or 0,
    )


def _read(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise NightError(f"{path} is not valid JSON ({error}); serving cannot start with it either") from None
    return found if isinstance(found, dict) else {}
