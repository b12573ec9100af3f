"""One prompt of a night with what is needed to score it, and the selection of all of them, as kept in the night's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from nightschool.errors import NightError


class Drop(StrEnum):
    """Why an episode, or an example, takes no part in a night."""

    SEEN = "seen-by-an-earlier-night"
    """None of its records is new since the last published night."""
    DOCTOR = "doctor"
    """A marked request of `nightschool doctor`, which is nobody's traffic."""
    NO_RUBRIC = "task-without-rubric"
    NOT_TEXT_ANSWER = "answer-is-not-text"
    """The answer called a tool, or holds parts other than text."""
    NOT_TEXT_PROMPT = "message-is-not-text"
    NOT_CHAT = "completion-without-token-ids"
    """A bare completion: its prompt had no chat template around it, and the server recorded no token ids of this tokenizer."""
    NO_TEMPLATE = "refused-by-chat-template"
    """The base model's chat template has no spelling for the conversation (a role it does not know, say)."""
    NO_OUTCOME = "no-outcome"
    """Nobody said how it turned out; that is not a bad grade."""
    UNSETTLED = "outcome-not-settled"
    """What somebody said may still change; a later night learns from it once it has stood for its time."""
    CONFLICT = "conflicting-outcomes"
    """Two raters chose differently."""
    TOO_LONG = "prompt-too-long"
    DUPLICATE = "duplicate-prompt"
    """The same prompt as another example's; it could stand on both sides of the split."""
    USER_SHARE = "over-share-of-one-user"
    OTHER_TOKENIZER = "tokens-of-another-tokenizer"
    """Not the example: its recorded token ids, because their tokenizer is not this base model's, or not known. The prompt is
    rendered from its messages instead."""


@dataclass(frozen=True, slots=True)
class Example:
    """One captured prompt, ready to sample from and to score."""

    id: str
    trace_id: str
    task: str
    user: str
    """Pseudonym of the user, or the trace id when the app named none: the cluster of all statistics."""
    message: str
    """The last user message, for people."""
    prompt_ids: tuple[int, ...]
    answer: str
    """What production answered."""
    references: Mapping[str, str]
    """What the human finally chose, by outcome name."""
    demonstration: str | None
    """The human's own final answer, when it is an answer to this prompt."""
    max_tokens: int
    cut_short: bool
    """The night samples fewer tokens than production would: a truncated rollout says nothing."""
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    revision: int = 0
    """How many outcomes came after the episode was final; above 0, an earlier night may have learned from another answer."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The examples of a night. The same manifest gives the same selection."""

    train: tuple[Example, ...]
    holdout: tuple[Example, ...]
    dropped: Mapping[str, int]
    """Reason -> count."""
    num_new_episodes: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Selection:
        raw = json.loads(text)
        train, holdout = (tuple(_example(item) for item in raw[name]) for name in ("train", "holdout"))
        return cls(train, holdout, raw["dropped"], raw["num_new_episodes"])


def _example(raw: Mapping[str, Any]) -> Example:
    return Example(**{**raw, "prompt_ids": tuple(raw["prompt_ids"]), "stop": tuple(raw["stop"])})


def load_selection(path: Path) -> Selection:
    """Read back a selection; `NightError` when it is damaged."""
    try:
        return Selection.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NightError(f"{path} cannot be read ({error}); start the night without --resume") from None
