"""Which model calls become prompts of a night, which of them only test, and why the rest is left out."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nightschool import semconv as names
from nightschool.config.settings import NightConfig
from nightschool.episode import Episode, TextPart
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.episodes.reasons import DropReason, LeftOut
from nightschool_nightly.examples.example import STILL_NEWS, Example, Selection
from nightschool_nightly.examples.learned import NOTHING_LEARNED, Learned, hash_evidence, hash_id, hash_prompt
from nightschool_nightly.examples.pool import Pool, Row
from nightschool_nightly.examples.prompt import ChatTokenizer, has_foreign_tokens, prompt_ids_of
from nightschool_nightly.examples.references import References, find_references
from nightschool_nightly.examples.rollout_limit import limit_rollouts
from nightschool_nightly.examples.sampling import as_served, sampling_of
from nightschool_nightly.examples.split import NoPlace, Places
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
    learned: Learned = NOTHING_LEARNED,
    night: str = "",
    watch: Watch | None = None,
    left_out: NoPlace | None = None,
) -> Selection:
    """Choose a night's examples out of its episodes, which must come in a fixed order.

    Recorded token ids are used where they are of the tokenizer with `tokenizer_digest`, the SHA-256 of its
    tokenizer.json. `learned` is what the release that the night goes on from was made of, `night` the digest that seeds
    what is drawn. `watch` sees what becomes of each new episode by itself, `left_out` gets the examples among them that
    the night has no place for.
    """
    candidates = _Candidates(tenant, settings, rubrics, tokenizer, serving, tokenizer_digest, settling, learned)
    num_new, carried, dropped = 0, set[str](), Counter[str]()
    late: NoPlace = {} if left_out is None else left_out
    with tempfile.TemporaryDirectory(prefix="nightschool-examples-") as folder, Pool(Path(folder) / "pool", tenant) as pool:
        rows: list[Row] = []
        # One episode at a time goes through: neither a day's episodes nor the prompts of its examples fit in memory.
        for found in map(candidates.examine, built):
            num_new += found.is_new
            if watch is not None and found.is_new:
                watch(found.episode, found.result)
            if isinstance(found.result, DropReason | LeftOut):
                dropped[str(found.result)] += 1
                continue
            rows.append(pool.put(found.result))
            if not found.is_new:
                carried.add(found.result.id)
            elif found.has_foreign_tokens:
                dropped[DropReason.OTHER_TOKENIZER] += 1
        sides = Places(tenant, settings, learned, night, late).give(rows)
        train, holdout = (tuple(map(pool.get, side)) for side in sides)
    for name, reason in late.items():
        dropped[DropReason.SEEN if name in carried and reason not in STILL_NEWS else reason] += 1
    num_carried = sum(example.id in carried for example in (*train, *holdout))
    train = tuple(limit_rollouts(train, tokenizer, max_tokens=settings.max_tokens))
    return Selection(train, holdout, dict(sorted(dropped.items())), num_new, num_carried)


# --- the stages ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Examined:
    """An episode, and the example that its last call gives or why it gives none."""

    episode: Episode
    is_new: bool
    """No night that ended has seen the episode as it is now."""
    result: Example | DropReason | LeftOut
    has_foreign_tokens: bool = False
    """It has recorded token ids that are not of this base model's tokenizer, so they were not used."""


@dataclass(frozen=True, slots=True)
class _Candidates:
    """What decides whether an episode gives an example. Looking at one changes nothing."""

    tenant: str
    settings: NightConfig
    rubrics: Mapping[str, Rubric]
    tokenizer: ChatTokenizer
    serving: ServingDefaults
    tokenizer_digest: str | None
    settling: SettlingRules | None
    learned: Learned

    def examine(self, built: BuiltEpisode) -> _Examined:
        """The example that an episode gives, or why it gives none.

        One that an earlier night has read gives one too, unless the release has learned from it: it is carried over.
        Why it cannot be used was counted by the night that read it.
        """
        is_new = built.is_new or self._has_become_final(built.episode)
        found = self._examined(built.episode, is_new)
        return found if is_new or isinstance(found.result, Example) else replace(found, result=DropReason.SEEN)

    def _has_become_final(self, episode: Episode) -> bool:
        """Whether an episode without new records is new all the same: the last night still waited for it."""
        rubric = self.rubrics.get(episode.task)
        if self.settling is None or rubric is None:
            return False
        return settle(episode, rubric.outcome_names, self.settling).is_final_since_last_night(self.settling)

    def _examined(self, episode: Episode, is_new: bool) -> _Examined:
        """The example that the last call of an episode gives, or the first reason why it gives none."""
        call, rubric = episode.calls[-1], self.rubrics.get(episode.task)
        if episode.task == names.DOCTOR_TASK:
            return _Examined(episode, is_new, DropReason.DOCTOR)
        if rubric is None:
            return _Examined(episode, is_new, DropReason.NO_RUBRIC)
        if any(not isinstance(part, TextPart) for part in call.answer.parts):
            return _Examined(episode, is_new, DropReason.NOT_TEXT_ANSWER)
        references = find_references(call, episode.outcomes, rubric)
        if isinstance(references, DropReason):
            return _Examined(episode, is_new, references)
        settled = settle(episode, rubric.outcome_names, self.settling) if self.settling else None
        if settled is not None and settled.state is EpisodeState.PROVISIONAL:
            return _Examined(episode, is_new, DropReason.UNSETTLED)
        if not is_new and hash_evidence(_id_of(episode), references.texts) in self.learned.examples:
            return _Examined(episode, is_new, DropReason.SEEN)
        example = self._example(episode, references, revision=settled.revision if settled else 0)
        if not is_new and isinstance(example, Example) and self._is_copy_of_learned(example):
            return _Examined(episode, is_new, DropReason.SEEN)
        return _Examined(episode, is_new, example, has_foreign_tokens(call, self.tokenizer_digest))

    def _is_copy_of_learned(self, example: Example) -> bool:
        """Whether another example with the same prompt trained; one that trained itself is here because of a correction."""
        return hash_id(example.id) not in self.learned.ids and hash_prompt(self.tenant, example) in self.learned.prompts

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
            id=_id_of(episode),
            trace_id=episode.trace_id,
            task=episode.task,
            cluster=episode.subject or episode.conversation or episode.trace_id,
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


def _id_of(episode: Episode) -> str:
    """The id of the example that an episode gives: of its trace and its last call."""
    return hashlib.sha256(f"{episode.trace_id}/{episode.calls[-1].span_id}".encode()).hexdigest()[:16]
