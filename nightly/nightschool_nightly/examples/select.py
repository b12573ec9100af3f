"""Which model calls become prompts of a night, which of them only test, and why the rest is left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jinja2 import TemplateError

from nightschool import semconv as names
from nightschool.config.settings import NightConfig
from nightschool.episode import Episode, Message, ModelCall, OutcomeHistory, TextPart
from nightschool_nightly.episodes.store import BuiltEpisode
from nightschool_nightly.examples.example import Drop, Example, Selection
from nightschool_nightly.examples.split import cap_users, is_held_out
from nightschool_nightly.freeze.settling import Lateness, standing
from nightschool_nightly.rewards.rubric import Rubric

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
    train = cap_users(train, settings.max_share_per_user, dropped)
    holdout = cap_users(holdout, settings.max_share_per_user, dropped)
    return Selection(tuple(train), tuple(holdout), dict(sorted(dropped.items())), num_new)


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


def _chat_message(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.text}
