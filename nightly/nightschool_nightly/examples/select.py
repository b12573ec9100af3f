"""Which model calls become prompts of a night, which of them only test, and why the rest is left out."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from jinja2 import TemplateError

from nightschool import semconv as names
from nightschool.config.settings import NightConfig
from nightschool.episode import Episode, Message, ModelCall, OutcomeHistory, TextPart
from nightschool.errors import NightError
from nightschool_nightly.episodes.store import BuiltEpisode
from nightschool_nightly.freeze.settling import Lateness, standing
from nightschool_nightly.rewards.rubric import Rubric


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


Watch = Callable[[Episode, Example | Drop], None]
"""Sees every new episode, and the example it gave or why it gave none."""


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


@dataclass(slots=True)
class _Selector:
    tenant: str
    settings: NightConfig
    rubrics: Mapping[str, Rubric]
    tokenizer: ChatTokenizer
    max_model_len: int
    tokenizer_digest: str | None
    dropped: Counter[str]
    lateness: Lateness | None = None
    seen: set[tuple[str, tuple[int, ...]]] = field(default_factory=set)

    def example(self, episode: Episode) -> Example | Drop:
        """The example of an episode's last call, or why it is none."""
        if episode.task == names.DOCTOR_TASK:
            return Drop.DOCTOR
        call, rubric = episode.calls[-1], self.rubrics.get(episode.task)
        if rubric is None:
            return Drop.NO_RUBRIC
        if any(not isinstance(part, TextPart) for part in call.answer.parts):
            return Drop.NOT_TEXT_ANSWER
        references = find_references(call, episode.outcomes, rubric)
        if isinstance(references, Drop):
            return references
        stands = standing(episode, rubric.outcome_names, self.lateness) if self.lateness else None
        if stands is not None and not stands.is_final:
            return Drop.UNSETTLED
        prompt_ids = self.prompt_ids(call)
        if isinstance(prompt_ids, Drop):
            return prompt_ids
        asked = int(call.request.get("max_tokens") or self.settings.max_tokens)
        max_tokens = min(asked, self.settings.max_tokens)
        if len(prompt_ids) + max_tokens > self.max_model_len:
            return Drop.TOO_LONG
        if (episode.task, prompt_ids) in self.seen:
            return Drop.DUPLICATE
        self.seen.add((episode.task, prompt_ids))
        texts = [message.text for message in call.messages if message.role == "user"]
        stop = call.request.get("stop_sequences") or ()
        return Example(
            id=hashlib.sha256(f"{episode.trace_id}/{call.span_id}".encode()).hexdigest()[:16],
            trace_id=episode.trace_id,
            task=episode.task,
            user=episode.subject or episode.trace_id,
            message=texts[-1] if texts else "",
            prompt_ids=prompt_ids,
            answer=call.answer.text,
            references=references,
            demonstration=next(iter(references.values())) if len(references) == 1 else None,
            max_tokens=max_tokens,
            cut_short=max_tokens < asked,
            temperature=float(call.request.get("temperature", 1.0)),
            top_p=float(call.request.get("top_p", 1.0)),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            revision=stands.revision if stands else 0,
        )

    def has_settled_since(self, episode: Episode) -> bool:
        """Whether an episode without new records is news all the same: the last published night still waited for it."""
        rubric = self.rubrics.get(episode.task)
        if self.lateness is None or rubric is None:
            return False
        return standing(episode, rubric.outcome_names, self.lateness).is_news(self.lateness)

    def prompt_ids(self, call: ModelCall) -> tuple[int, ...] | Drop:
        """The token ids production's server saw, if they mean the same here; else those of the rendered messages."""
        if call.tokens is not None:
            if call.tokens.tokenizer == self.tokenizer_digest:
                return call.tokens.prompt_ids
            self.dropped[Drop.OTHER_TOKENIZER] += 1
        return self.render(call) if call.is_chat else Drop.NOT_CHAT

    def render(self, call: ModelCall) -> tuple[int, ...] | Drop:
        """Token ids of the context, by the same chat template that serving uses; or why it has none."""
        if any(not isinstance(part, TextPart) for message in call.messages for part in message.parts):
            return Drop.NOT_TEXT_PROMPT
        conversation = [_chat_message(message) for message in call.messages]
        try:
            ids = self.tokenizer.apply_chat_template(
                conversation, tools=list(call.tools) or None, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except TemplateError:
            return Drop.NO_TEMPLATE
        return tuple(ids)


def select_examples(
    built: Iterable[BuiltEpisode],
    *,
    tenant: str,
    settings: NightConfig,
    rubrics: Mapping[str, Rubric],
    tokenizer: ChatTokenizer,
    max_model_len: int,
    tokenizer_digest: str | None = None,
    lateness: Lateness | None = None,
    watch: Watch | None = None,
) -> Selection:
    """Choose a night's examples out of its episodes, which must come in a fixed order; `watch` sees what becomes of each.

    Recorded token ids are used where they are of the tokenizer with `tokenizer_digest`, the SHA-256 of its tokenizer.json.
    What it sees of an example is before the share of its user is cut: an example that is not in the selection was over it.
    """
    num_new, dropped = 0, Counter[str]()
    selector = _Selector(tenant, settings, rubrics, tokenizer, max_model_len, tokenizer_digest, dropped, lateness)
    train: list[Example] = []
    holdout: list[Example] = []
    for item in built:
        if not item.new and not selector.has_settled_since(item.episode):
            dropped[Drop.SEEN] += 1
            continue
        num_new += 1
        example = selector.example(item.episode)
        if watch is not None:
            watch(item.episode, example)
        if isinstance(example, Drop):
            dropped[example] += 1
        else:
            (holdout if is_held_out(tenant, example.user, settings.holdout_share) else train).append(example)
    train = _cap_users(train, settings.max_share_per_user, dropped)
    holdout = _cap_users(holdout, settings.max_share_per_user, dropped)
    return Selection(tuple(train), tuple(holdout), dict(sorted(dropped.items())), num_new)


def is_held_out(tenant: str, user: str, share: float) -> bool:
    """Whether a user only tests. By a hash of the user alone, so that it is the same every night: nobody trained on ever tests."""
    digest = hashlib.sha256(f"holdout/{tenant}/{user}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def find_references(call: ModelCall, outcomes: Sequence[OutcomeHistory], rubric: Rubric) -> dict[str, str] | Drop:
    """What the human finally chose, for each outcome the rubric needs; or the reason why that is not known."""
    references: dict[str, str] = {}
    for name in rubric.outcome_names:
        about = (history for history in outcomes if history.current.name == name and history.span_id in (None, call.span_id))
        texts = {text for history in about if (text := _chosen(call, history)) is not None}
        if not texts:
            return Drop.NO_OUTCOME
        if len(texts) > 1:
            return Drop.CONFLICT
        references[name] = texts.pop()
    return references


def _chosen(call: ModelCall, history: OutcomeHistory) -> str | None:
    """The final answer an outcome stands for: the edit, a text value, or the answer itself when it was approved."""
    outcome = history.current
    if outcome.final_answer is not None:
        return outcome.final_answer
    if isinstance(outcome.value, str):
        return outcome.value
    return call.answer.text if outcome.value is True else None


def _cap_users(examples: list[Example], share: float, dropped: Counter[str]) -> list[Example]:
    """Keep at most `share` of the examples from one user, the first by id."""
    limit = max(1, math.ceil(share * len(examples)))
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for example in sorted(examples, key=lambda example: example.id):
        taken[example.user] += 1
        if taken[example.user] <= limit:
            kept.append(example)
        else:
            dropped[Drop.USER_SHARE] += 1
    return kept


def _chat_message(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.text}


def _example(raw: Mapping[str, Any]) -> Example:
    return Example(**{**raw, "prompt_ids": tuple(raw["prompt_ids"]), "stop": tuple(raw["stop"])})


def load_selection(path: Path) -> Selection:
    """Read back a selection; `NightError` when it is damaged."""
    try:
        return Selection.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NightError(f"{path} cannot be read ({error}); start the night without --resume") from None
