"""A night, top to bottom: the eight steps that turn a tenant's traffic into a better adapter.

    1 freeze     what the night reads is written down                               night.json
    2 episodes   records become episodes, episodes become examples                  selection.json
    3 rollouts   vLLM samples answers from the current policy   |
    4 rewards    the rubrics score them                         | repeated          checkpoint-<n>/, candidate/
    5 GRPO       one optimizer step                             |
    6 audit      does the reward still agree with what happened?  (not built yet)
    7 gate       is the candidate better on held-out prompts?                       evaluation.json
    8 publish    the release is filed and the pointer moves to it                   finished.json

Each step leaves what it made in the night's folder (`folder.py`). A killed night goes on from there and ends with the
same candidate. Until the pointer moves, which is the last thing done, serving is as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from nightschool.config.settings import Config
from nightschool.config.stream import open_configured
from nightschool.dtype import resolve_dtype
from nightschool.errors import NightError
from nightschool.registry.base_model import base_model_folder, describe_base_model
from nightschool.registry.folder import Registry
from nightschool.registry.release import NIGHT, REPORT
from nightschool_nightly.examples.choose import choose_examples
from nightschool_nightly.examples.example import Selection
from nightschool_nightly.examples.forgotten import refuse_forgotten
from nightschool_nightly.folder import FINISHED, MANIFEST, SELECTION, NightFolder, NightFolders
from nightschool_nightly.freeze.freeze import freeze_tenant, redaction_of
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.freeze.parent import verify_parent
from nightschool_nightly.freeze.serving_defaults import serving_defaults
from nightschool_nightly.freeze.settling import settling_of
from nightschool_nightly.gate.evaluation import Evaluation
from nightschool_nightly.gate.gate import Decision, compare, decide
from nightschool_nightly.inputs import FrozenNight, NightInputs
from nightschool_nightly.learning import learn_and_evaluate
from nightschool_nightly.progress import Progress
from nightschool_nightly.publish.entry import enter_night, has_left_over, refuse_overtaken
from nightschool_nightly.publish.lineage import with_lineage
from nightschool_nightly.publish.publish import has_moved, publish_release
from nightschool_nightly.publish.report import render_report
from nightschool_nightly.rewards.load import load_rubrics


class NightEnd(StrEnum):
    """How a night ends when nothing went wrong."""

    PUBLISHED = "published"
    """The candidate passed the gate and is the tenant's release."""
    REJECTED = "rejected"
    """The candidate did not pass; the release is as it was."""
    FROZEN = "frozen"
    """A person has stopped automatic changes of the tenant's release, so nothing was trained."""
    NOTHING_NEW = "nothing-new"
    """No new evidence since the last night."""
    NOTHING_TO_LEARN = "nothing-to-learn"
    """There is new traffic, but too little of it has an outcome, or no group of answers differs in reward."""
    DRY_RUN = "dry-run"
    """Stopped after showing what would be trained on."""


@dataclass(frozen=True, slots=True)
class NightResult:
    """How a night ended."""

    end: NightEnd
    text: str
    """A sentence for a person."""
    release: str | None = None
    """The release that was published."""


def run_night(
    config: Config, tenant: str, *, dry_run: bool, resume: bool, progress: Progress, now_ms: Callable[[], int]
) -> NightResult:
    """Run one tenant's night. Errors leave the registry as it was."""
    rubrics = load_rubrics(config, tenant)
    folders = NightFolders(config.night.state, tenant)
    model, registry = base_model_folder(config.model.path), Registry(config.registry.path)
    if not dry_run:
        registry.check_present()
    with ExitStack() as stack:
        stack.enter_context(folders.locked())
        stream = stack.enter_context(open_configured(config.stream))
        inputs = NightInputs(config, tenant, model, rubrics, registry, stream)
        if registry.pointer(tenant).frozen and not dry_run:
            return NightResult(NightEnd.FROZEN, _frozen(tenant, resume=resume))
        # Step 1, which a resumed night has already done.
        manifest, folder = _find_unfinished(inputs, folders) if resume else _freeze(inputs, folders, now_ms())
        left_over = has_left_over(registry, manifest)
        if (ended := folder.finished) is not None or not (manifest.has_new_records or left_over):
            return NightResult(NightEnd.NOTHING_NEW, _nothing_new(ended))
        night = FrozenNight(inputs, manifest, folder, progress)
        _begin(night, anew=not resume, dry_run=dry_run)
        selection = _select_examples(night, dry_run=dry_run)  # Step 2
        if dry_run:
            text = f"dry run: {len(selection.train)} prompts to learn from, {len(selection.holdout)} to test with"
            return NightResult(NightEnd.DRY_RUN, text)
        if (too_little := _too_little(config, selection, left_over=left_over)) is not None:
            return _finish(night, selection, NightResult(NightEnd.NOTHING_TO_LEARN, too_little))
        evaluation = learn_and_evaluate(night, selection)  # Steps 3 to 5
        if not evaluation.has_signal:
            text = "no step had a group whose rewards differ: nothing to learn; look at the rubric and at ten answers"
            return _finish(night, selection, NightResult(NightEnd.NOTHING_TO_LEARN, text))
        decision = _decide(night, selection, evaluation)  # Step 7
        _describe_candidate(night, selection, evaluation, decision)
        if not decision.accepted:
            return _finish(night, selection, NightResult(NightEnd.REJECTED, "; ".join(decision.reasons)))
        return _finish(night, selection, _publish(night, selection, decision))  # Step 8


# --- 1: freeze ----------------------------------------------------------------------------------------------------------
def _freeze(inputs: NightInputs, folders: NightFolders, now_ms: int) -> tuple[NightManifest, NightFolder]:
    manifest = freeze_tenant(
        inputs.config,
        inputs.tenant,
        inputs.stream,
        registry=inputs.registry,
        model=inputs.model,
        rubrics=inputs.rubrics,
        now_ms=now_ms,
    )
    return manifest, folders.night(manifest.digest)


def _find_unfinished(inputs: NightInputs, folders: NightFolders) -> tuple[NightManifest, NightFolder]:
    """The newest unfinished night's own manifest; `NightError` unless what it froze is still what is configured."""
    folder = folders.newest_unfinished()
    manifest = folder.manifest()
    rubrics = {task: rubric.digest for task, rubric in sorted(inputs.rubrics.items())}
    settings = {name: value for name, value in asdict(inputs.config.night).items() if name in manifest.settings}
    for name, frozen, now in (
        ("the rubrics", manifest.rubrics, rubrics),
        ("[outcomes]", manifest.settles_after_ms, settling_of(inputs.config, inputs.rubrics)),
        ("the base model", manifest.base_model, describe_base_model(inputs.model)),
        ("the base model's dtype", manifest.dtype, resolve_dtype(inputs.config.model.dtype)),
        ("[privacy]", manifest.redaction, redaction_of(inputs.config, inputs.tenant)),
        ("[night]", manifest.settings, settings),
        ("[serving]", manifest.serving, serving_defaults(inputs.config.serving, inputs.model).to_json()),
    ):
        if frozen != now:
            raise NightError(f"{name} changed since night {manifest.digest[:12]} was frozen; start a new night without --resume")
    _check_release(inputs, manifest)
    refuse_overtaken(inputs.registry, manifest)
    return manifest, folder


def _check_release(inputs: NightInputs, manifest: NightManifest) -> None:
    """Raise before anything is computed if the release that the night began from no longer serves, or is damaged."""
    registry, tenant = inputs.registry, inputs.tenant
    pointer = registry.pointer(tenant)
    if has_moved(manifest.pointer, pointer):
        if pointer.stable is not None and registry.manifest(tenant, pointer.stable).night == manifest.digest:
            return  # this night moved it, and was killed before it had written so
        raise NightError(
            f"the pointer of {tenant!r} was moved since night {manifest.digest[:12]} was frozen; start a new night without --resume"
        )
    max_rank = inputs.config.serving.max_lora_rank
    verify_parent(registry, tenant, manifest.pointer, base_model=manifest.base_model, dtype=manifest.dtype, max_rank=max_rank)


def _frozen(tenant: str, *, resume: bool) -> str:
    again = "run the night again with --resume" if resume else "run the night again"
    return f"the pointer of {tenant!r} is frozen, so nothing was trained; unfreeze it (docs/registry.md says how) and {again}"


def _begin(night: FrozenNight, *, anew: bool, dry_run: bool) -> None:
    """Make the night's folder, empty unless it is resumed. A dry run makes none: a real night would find it there."""
    if not dry_run:
        if anew:
            night.folder.write(MANIFEST, night.manifest.to_json())
            night.folder.clear()
        night.progress.watch(night.folder.events)
    manifest = night.manifest
    night.progress.phase(
        "freeze",
        f"night {manifest.digest[:12]} of {night.inputs.tenant}: {night.num_records} records, {manifest.dtype}",
    )


def _nothing_new(ended: Mapping[str, Any] | None) -> str:
    if ended is None:
        return "no new evidence since the last night; nothing to do"
    return f"no new evidence: the night on this evidence ended before ({ended['end']}: {ended['text']})"


# --- 2: episodes --------------------------------------------------------------------------------------------------------
def _select_examples(night: FrozenNight, *, dry_run: bool) -> Selection:
    """What the night learns from and tests with; `NightError` when a user in it was forgotten after the freeze."""
    inputs, selection = night.inputs, night.folder.selection()
    if selection is None:
        night.progress.phase("episodes", "joining spans with outcomes")
        selection = choose_examples(
            inputs.config, inputs.stream, night.manifest, model=inputs.model, rubrics=inputs.rubrics, bury=not dry_run
        )
        if not dry_run:
            night.folder.write(SELECTION, selection.to_json())
    refuse_forgotten(inputs.stream, night.manifest, selection)
    night.progress.note(
        f"{selection.num_new_episodes} new episodes: "
        f"{len(selection.train)} prompts to learn from, {len(selection.holdout)} held out by user"
    )
    if selection.num_carried_over:
        night.progress.note(f"{selection.num_carried_over} of these prompts are carried over from earlier nights")
    if night.manifest.starts_over:
        night.progress.note(
            "the tenant has a key that the release was not made under. Users have other pseudonyms under it, so that nobody knows"
            " who trained the release: tonight learns on top of the base model, and is compared with the release as ever;"
            " a [tenants.NAME] subject_key_file keeps pseudonyms when keys change"
        )
    for reason, count in selection.dropped.items():
        night.progress.note(f"left out, {reason}: {count}")
    return selection


def _too_little(config: Config, selection: Selection, *, left_over: bool) -> str | None:
    """Why the selection cannot carry a night; None when it can."""
    if not selection.num_new_episodes and not left_over:
        return "no new evidence: no episode is new or has become final since the last night"
    settings = config.night
    for name, have, need in (
        ("to learn from", len(selection.train), min(settings.min_train, settings.steps * settings.prompts_per_step)),
        ("held out to test with", len(selection.holdout), settings.min_holdout),
    ):
        if have < need:
            found = (
                f"too little new evidence: scored prompts {name}: {have}" if have else f"no new evidence: no scored prompt {name}"
            )
            return f"{found}; at least {need} are needed; nothing was published"
    return None


# --- 7: gate ------------------------------------------------------------------------------------------------------------
def _decide(night: FrozenNight, selection: Selection, evaluation: Evaluation) -> Decision:
    """The candidate against the base model and against the release, if there is one."""
    settings, users = night.inputs.config.night, [example.cluster for example in selection.holdout]
    comparisons = [
        compare(
            other.policy.value,
            other.rewards,
            evaluation.candidate.rewards,
            users,
            confidence=settings.confidence,
            seed=night.seed("bootstrap", other.policy.value),
        )
        for other in (evaluation.base, evaluation.release)
        if other is not None
    ]
    for c in comparisons:
        night.progress.note(
            f"against {c.against}: {c.before:.3f} -> {c.after:.3f}, difference {c.difference:+.3f}, "
            f"lower bound {c.lower_bound:+.3f} ({c.num_prompts} prompts, {c.num_users} users; "
            f"unscored: {c.against} {c.unscored_before}, candidate {c.unscored_after})"
        )
    return decide(comparisons, min_holdout=settings.min_holdout, kl=evaluation.kl, kl_budget=settings.kl_budget)


def _describe_candidate(night: FrozenNight, selection: Selection, evaluation: Evaluation, decision: Decision) -> None:
    """Put the report and the manifest beside the candidate's adapter, rejected or not: a person reads why."""
    report = render_report(night.manifest, selection, evaluation, decision, num_records=night.num_records)
    (night.folder.candidate / REPORT).write_text(report, encoding="utf-8")
    (night.folder.candidate / NIGHT).write_text(with_lineage(night.manifest, selection).to_json(), encoding="utf-8")


# --- 8: publish ---------------------------------------------------------------------------------------------------------
def _publish(night: FrozenNight, selection: Selection, decision: Decision) -> NightResult:
    """File the release and move the pointer; `NightError` when a user in it was forgotten while the night ran."""
    refuse_forgotten(night.inputs.stream, night.manifest, selection)
    night.progress.phase("publish", "filing the release and moving the pointer")
    registry, manifest = night.inputs.registry, night.manifest
    enter = partial(enter_night, registry, manifest, selection, end=NightEnd.PUBLISHED.value)
    release = publish_release(registry, night.folder.candidate, manifest, decision, enter=lambda name: enter(release=name))
    return NightResult(NightEnd.PUBLISHED, describe_gain(release, decision), release)


def describe_gain(release: str, decision: Decision) -> str:
    """One line on a published release: its gain over what served before, or over the base model on the first night."""
    gain = decision.headline
    rewards = f"{gain.before:.2f} -> {gain.after:.2f} ({gain.difference:+.2f})"
    return f"release {release[:12]}: held-out reward {rewards} against {gain.against}"


def _finish(night: FrozenNight, selection: Selection, result: NightResult) -> NightResult:
    """Write how the night ended, last of all: into the ledger, then into its folder."""
    enter_night(night.inputs.registry, night.manifest, selection, end=result.end.value, release=result.release)
    night.folder.write(FINISHED, json.dumps({"end": result.end, "text": result.text, "release": result.release}))
    NightFolders(night.inputs.config.night.state, night.inputs.tenant).prune(keep=night.manifest.digest)
    return result
