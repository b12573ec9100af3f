"""Which model calls become prompts of a night, which of them only test, and why the rest is left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from nightschool import semconv as names
from nightschool.config.settings import NightConfig
from nightschool.episode import Episode, TextPart
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.episodes.reasons import DropReason, LeftOut
from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.examples.prompt import ChatTokenizer, has_foreign_tokens, prompt_ids_of
from nightschool_nightly.examples.references import References, find_references
from nightschool_nightly.examples.rollout_limit import limit_rollouts
from nightschool_nightly.examples.sampling import as_served, sampling_of
from nightschool_nightly.examples.split import cap_clusters, split
from nightschool_nightly.freeze.serving_defaults import ServingDefaults
from nightschool_nightly.freeze.settling import EpisodeState, SettlingRules, settle
from nightschool_nightly.rewards.rubric import Rubric

Watch = Callable[[Episode, Example | DropReason | LeftOut], None]
"""Sees every new episode, and the example that it gave or why it gave none."""


def select_examples(
    built: Iterable[BuiltEpisode],
    *,
    tenant: str,
    settings: NightConfig,
    rubrics: Mapping[str, Rubric],
    tokenizer: ChatTokenizer,
    serving: ServingDefaults,
    tokenizer_digest: str | None = None,
    settling: SettlingRules | None = None,
    watch: Watch | None = None,
) -> Selection:
    """Choose a night's examples out of its episodes, which must come in a fixed order.

    Recorded token ids are used where they are of the tokenizer with `tokenizer_digest`, the SHA-256 of its
    tokenizer.json. `watch` sees what becomes of each new episode before the share of one user is capped: an example
    that it saw and that is not in the selection was over that share.
    """
    candidates = _Candidates(settings, rubrics, tokenizer, serving, tokenizer_digest, settling)
    num_new, dropped = 0, Counter[str]()
    examples: list[Example] = []
    # One episode at a time goes through the stages: a day's episodes do not fit in memory, its examples do.
    for found in _deduplicated(map(candidates.examine, _new_episodes(built, candidates, dropped))):
        num_new += 1
        if watch is not None:
            watch(found.episode, found.result)
        if found.has_foreign_tokens:
            dropped[DropReason.OTHER_TOKENIZER] += 1
        if isinstance(found.result, DropReason | LeftOut):
            dropped[str(found.result)] += 1
        else:
            examples.append(found.result)
    sides = split(examples, tenant=tenant, holdout_share=settings.holdout_share)
    train, holdout = (cap_clusters(side, settings.max_share_per_user) for side in sides)
    if num_over := len(examples) - len(train) - len(holdout):
        dropped[DropReason.USER_SHARE] = num_over
    train = limit_rollouts(train, tokenizer, max_tokens=settings.max_tokens)
    return Selection(tuple(train), tuple(holdout), dict(sorted(dropped.items())), num_new)


# --- the stages ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Examined:
    """An episode, and the example that its last call gives or why it gives none."""

    episode: Episode
    result: Example | DropReason | LeftOut
    has_foreign_tokens: bool = False
    """It has recorded token ids that are not of this base model's tokenizer, so they were not used."""


def _new_episodes(built: Iterable[BuiltEpisode], candidates: _Candidates, dropped: Counter[str]) -> Iterator[Episode]:
    """Episodes that no published night has seen as they are now; the others are counted."""
    for item in built:
        if item.is_new or candidates.has_become_final(item.episode):
            yield item.episode
        else:
            dropped[DropReason.SEEN] += 1


def _deduplicated(examined: Iterable[_Examined]) -> Iterator[_Examined]:
    """The same with each prompt of a task only once, the first time: copies could be on both sides of the split."""
    seen: set[tuple[str, tuple[int, ...]]] = set()
    for found in examined:
        if isinstance(found.result, DropReason | LeftOut):
            yield found
        elif (key := (found.result.task, found.result.prompt_ids)) in seen:
            yield replace(found, result=DropReason.DUPLICATE)
        else:
            seen.add(key)
            yield found


@dataclass(frozen=True, slots=True)
class _Candidates:
    """What decides whether an episode gives an example. Looking at one changes nothing."""

    settings: NightConfig
    rubrics: Mapping[str, Rubric]
    tokenizer: ChatTokenizer
    serving: ServingDefaults
    tokenizer_digest: str | None
    settling: SettlingRules | None

    def has_become_final(self, episode: Episode) -> bool:
        """Whether an episode without new records is new all the same: the last published night still waited for it."""
        rubric = self.rubrics.get(episode.task)
        if self.settling is None or rubric is None:
            return False
        return settle(episode, rubric.outcome_names, self.settling).is_final_since_last_night(self.settling)

    def examine(self, episode: Episode) -> _Examined:
        """The example that the last call of an episode gives, or the first reason why it gives none."""
        call, rubric = episode.calls[-1], self.rubrics.get(episode.task)
        if episode.task == names.DOCTOR_TASK:
            return _Examined(episode, DropReason.DOCTOR)
        if rubric is None:
            return _Examined(episode, DropReason.NO_RUBRIC)
        if any(not isinstance(part, TextPart) for part in call.answer.parts):
            return _Examined(episode, DropReason.NOT_TEXT_ANSWER)
        references = find_references(call, episode.outcomes, rubric)
        if isinstance(references, DropReason):
            return _Examined(episode, references)
        settled = settle(episode, rubric.outcome_names, self.settling) if self.settling else None
        if settled is not None and settled.state is EpisodeState.PROVISIONAL:
            return _Examined(episode, DropReason.UNSETTLED)
        example = self._example(episode, references, revision=settled.revision if settled else 0)
        return _Examined(episode, example, has_foreign_tokens(call, self.tokenizer_digest))

    def _example(self, episode: Episode, references: References, *, revision: int) -> Example | DropReason | LeftOut:
        """The example, if a night can sample as the request says, and its prompt can be written in tokens and fits."""
        call = episode.calls[-1]
        are_tokens_ours = call.tokens is not None and not has_foreign_tokens(call, self.tokenizer_digest)
        asked = sampling_of(call, are_tokens_ours=are_tokens_ours, max_model_len=self.serving.max_model_len)
        if isinstance(asked, LeftOut):
            return asked
        prompt_ids = prompt_ids_of(call, self.tokenizer, self.tokenizer_digest)
        if isinstance(prompt_ids, DropReason):
            return prompt_ids
        max_tokens = self.serving.answer_limit(asked.max_tokens, prompt_tokens=len(prompt_ids), is_chat=call.is_chat)
        if max_tokens < 1:
            return DropReason.TOO_LONG
        sampling = as_served(asked, self.serving.sampling)
        questions = [message.text for message in call.messages if message.role == "user"]
        return Example(
            id=hashlib.sha256(f"{episode.trace_id}/{call.span_id}".encode()).hexdigest()[:16],
            trace_id=episode.trace_id,
            task=episode.task,
            cluster=episode.subject or episode.trace_id,
            message=questions[-1] if questions else "",
            prompt_ids=prompt_ids,
            answer=call.answer.text,
            references=references.texts,
            demonstration=references.demonstration,
            max_tokens=max_tokens,
            rollout_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=asked.stop,
            others=sampling.others,
            revision=revision,
        )
