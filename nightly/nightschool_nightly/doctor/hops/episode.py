"""Hops of the nights: the episode, what is joined to it, and whether a night would learn from it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nightschool import semconv as names
from nightschool.registry.base_model import base_model_folder
from nightschool.registry.folder import Pointer
from nightschool.registry.release import describe_file
from nightschool.stream import StoredRecord, Stream
from nightschool_nightly.doctor.findings import BrokenHopError, Passed
from nightschool_nightly.doctor.hops.shared import missing_of
from nightschool_nightly.doctor.visit import QUESTION, USER, Visit
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.episodes.reasons import DropReason, LeftOut, reason_of
from nightschool_nightly.episodes.redacted_stream import redacted_for
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.examples.example import Example
from nightschool_nightly.examples.select import select_examples
from nightschool_nightly.freeze.freeze import NO_MODEL
from nightschool_nightly.freeze.manifest import FrozenRange, NightManifest
from nightschool_nightly.freeze.serving_defaults import serving_defaults
from nightschool_nightly.freeze.settling import HOUR_MS, settling_of, settling_rules

_ERASED = {DropReason.ERASED_SPAN, DropReason.ERASED_EVENT, DropReason.ERASED_OUTCOME}


def build_episode(visit: Visit) -> Passed:
    """Build an episode as a night does, with erasures and redaction, but out of the records of the request alone."""
    stream = visit.follower.stream
    visit.manifest = _manifest(visit, [*_ranges_of(visit.follower.found), *_erasures_in(stream)])
    with tempfile.TemporaryDirectory(prefix="nightschool-") as work, EpisodeStore(Path(work)) as store:
        store.build(redacted_for(visit.tenant, stream, visit.config), visit.manifest)
        built = [item.episode for item in store.episodes(visit.tenant)]
    visit.left_out = dict(sorted(store.counts.dropped.items()))
    ours = [episode for episode in built if episode.trace_id == visit.trace_id]
    if not ours:
        raise BrokenHopError(f"the records make no episode: {_counted(visit.left_out)}", _remedies(visit))
    visit.episode = ours[0]
    call = visit.episode.calls[-1]
    arrived = {
        "content": call.messages[-1].text == QUESTION,
        "answer": call.answer.text == visit.answer_text,
        "task": visit.episode.task == names.DOCTOR_TASK,
        "user": visit.episode.subject is not None,
        "conversation": visit.episode.conversation is not None,
    }
    if missing := missing_of(arrived):
        raise BrokenHopError(
            f"the episode lacks, or has changed: {missing}",
            "the records hold it, and the night redacted what our collector had not: look at the [privacy] settings",
            arrived,
        )
    return Passed(f"one episode, {len(visit.episode.calls)} model call", arrived)


def _ranges_of(records: Iterable[StoredRecord]) -> list[FrozenRange]:
    """A range for each of `records`, in an order that is always the same."""
    places = sorted((record.topic, record.partition, record.offset) for record in records)
    return [FrozenRange(topic, "", partition, offset, offset, offset + 1) for topic, partition, offset in places]


def _erasures_in(stream: Stream) -> list[FrozenRange]:
    """All erasures so far, as a night freezes them."""
    ends = stream.end_offsets(names.TOPIC_ERASURE)
    return [FrozenRange(names.TOPIC_ERASURE, "", partition, 0, 0, end) for partition, end in sorted(ends.items())]


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in reasons.items()) or "nothing was left out"


def _remedies(visit: Visit) -> str:
    """What to do about everything that was left out."""
    if _ERASED & visit.left_out.keys():
        undo = f"nightschool forget --tenant {visit.tenant} --user {USER} --undo"
        return f"somebody asked to forget the doctor's own user, whom no app has. To examine again: {undo}"
    return "; ".join(f"{name}: {reason_of(name).remedy}" for name in visit.left_out) or "report this"


def _manifest(visit: Visit, ranges: Sequence[FrozenRange]) -> NightManifest:
    """The manifest of a night that would read `ranges` and nothing else. It is never written, and no night uses it."""
    now_ms = time.time_ns() // 1_000_000
    return NightManifest(
        tenant=visit.tenant,
        ranges=tuple(ranges),
        settings={"outcome_window": visit.config.night.outcome_window},
        dtype=visit.config.model.dtype,
        base_model=NO_MODEL,
        rubrics={},
        pointer=Pointer(),
        frozen_at_ms=now_ms,
        settles_after_ms=settling_of(visit.config, visit.rubrics),
        as_of_ms=now_ms - now_ms % HOUR_MS,
    )


def check_join(visit: Visit) -> Passed:
    """The episode's call has the tokens and the release that the server recorded."""
    call = visit.episode.calls[-1]
    arrived = {
        "token ids": call.tokens is not None,
        "log-probabilities": call.tokens is not None,
        "release": call.release is not None,
    }
    if missing := missing_of(arrived):
        raise BrokenHopError(
            f"not joined to the app's call: {missing}",
            "app and server must name the same response id; let the app record the id that the server answered with",
            arrived,
        )
    return Passed("the server's tokens and release are on the app's call", arrived)


def check_outcome_join(visit: Visit) -> Passed:
    """The episode has every outcome that was sent, with its text."""
    texts = {history.current.name: history.current.final_text for history in visit.episode.outcomes}
    arrived = {name: name in texts for name in visit.outcome_ids}
    if missing := missing_of(arrived):
        raise BrokenHopError(f"not joined to their episode: {missing} ({_counted(visit.left_out)})", _remedies(visit), arrived)
    if changed := sorted(name for name in visit.outcome_ids if texts[name] != visit.final_text):
        raise BrokenHopError(
            f"another text than was sent: {', '.join(changed)}", "redaction changed it: look at the [privacy] settings", arrived
        )
    return Passed(f"on the episode: {', '.join(visit.outcome_ids)}", arrived)


def check_selection(visit: Visit) -> Passed:
    """A night would learn from such an episode of each of the tenant's tasks; the doctor's own is always left out."""
    model = visit.config.model.path
    digest = describe_file(base_model_folder(model) / "tokenizer.json").sha256
    for task in sorted(visit.rubrics):
        fates: list[Example | DropReason | LeftOut] = []
        select_examples(
            [BuiltEpisode(replace(visit.episode, task=task), is_new=True)],
            tenant=visit.tenant,
            settings=visit.config.night,
            rubrics=visit.rubrics,
            tokenizer=_Tokenizer(model),
            serving=serving_defaults(visit.config.serving, base_model_folder(model)),
            tokenizer_digest=digest,
            settling=settling_rules(visit.manifest),
            watch=lambda _, fate, fates=fates: fates.append(fate),  # type: ignore[misc]
        )
        if isinstance(fates[0], DropReason | LeftOut):
            reason = reason_of(str(fates[0]))
            raise BrokenHopError(
                f"as an episode of task {task} it would be left out: {fates[0]}, {reason.meaning}", reason.remedy
            )
    return Passed(f"it would be learned from as an episode of: {', '.join(sorted(visit.rubrics))}; being the doctor's, it is not")


class _Tokenizer:
    """The base model's tokenizer, loaded only when it is used: where serving recorded no tokens."""

    def __init__(self, model: str) -> None:
        self._model = model

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(base_model_folder(self._model)).apply_chat_template(conversation, **options)

    def encode(self, text: str, **options: Any) -> list[int]:
        """Nothing: how long rollouts may be is no question of the doctor's."""
        return []
