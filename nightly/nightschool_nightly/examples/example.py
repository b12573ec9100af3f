"""One prompt of a night with what is needed to score an answer to it, and the selection of all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nightschool.errors import NightError
from nightschool_nightly.episodes.reasons import DropReason

STILL_NEWS = frozenset((DropReason.NOT_SAMPLED, DropReason.USER_SHARE))
"""Why an example waits that a later night may learn from."""
CLUSTER_KEY = "user"
"""The key of `Example.cluster` in selection.json: it has always been this, and nights on disk must stay readable."""


@dataclass(frozen=True, slots=True)
class Example:
    """One captured prompt, ready to sample from and to score."""

    id: str
    trace_id: str
    task: str
    cluster: str
    """What all statistics count as one: the subject (the user's pseudonym), else the conversation, else the trace."""
    message: str
    """The last user message, for people."""
    prompt_ids: tuple[int, ...]
    answer: str
    """What production answered."""
    references: Mapping[str, str]
    """The right answer, by the name of the outcome that says so (`references`)."""
    demonstration: str | None
    """The answer that a human wrote, when it is a whole answer to this prompt; what a model or a program said never is."""
    max_tokens: int
    """Where production cuts an answer, in tokens: the request's own limit, else serving's, else what the model has room for."""
    rollout_tokens: int
    """Where training cuts a rollout, at most `max_tokens`. What is cut below that cannot be scored."""
    temperature: float
    """As production samples it, and so `top_p` and `others`: what the app asked for, else the default of serving."""
    top_p: float
    stop: tuple[str, ...]
    others: Mapping[str, Any]
    """More parameters of the request that change what is sampled, by their names in request bodies."""
    revision: int = 0
    """How many outcomes came after the episode was final: an earlier night may have learned from another answer."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The examples of a night. The same manifest gives the same selection."""

    train: tuple[Example, ...]
    holdout: tuple[Example, ...]
    dropped: Mapping[str, int]
    """How much was left out, by the name of its reason (`episodes.reasons`)."""
    num_new_episodes: int
    num_carried_over: int = 0
    """Examples of `train` and `holdout` that an earlier night has read and no release has learned from."""

    @property
    def num_left(self) -> int:
        """Prompts that this night has no room for, and that are still news to the next one."""
        return sum(self.dropped.get(reason, 0) for reason in STILL_NEWS)

    def to_json(self) -> str:
        """The text of selection.json."""
        raw = asdict(self)
        for item in (*raw["train"], *raw["holdout"]):
            item[CLUSTER_KEY] = item.pop("cluster")
        return json.dumps(raw, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Selection:
        """Read back the text of selection.json; `ValueError`, `KeyError` or `TypeError` when it is not that."""
        raw = json.loads(text)
        train, holdout = (tuple(_example(item) for item in raw[name]) for name in ("train", "holdout"))
        return cls(train, holdout, raw["dropped"], raw["num_new_episodes"], raw["num_carried_over"])


def load_selection(path: Path) -> Selection:
    """Read back a selection; `NightError` when it is damaged."""
    try:
        return Selection.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NightError(f"{path} cannot be read ({error}); start the night without --resume") from None


def _example(raw: Mapping[str, Any]) -> Example:
    values = {name: value for name, value in raw.items() if name != CLUSTER_KEY}
    values |= {"cluster": raw[CLUSTER_KEY], "prompt_ids": tuple(raw["prompt_ids"]), "stop": tuple(raw["stop"])}
    return Example(**values)
