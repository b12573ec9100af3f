"""A night, top to bottom: freeze, episodes, rollouts and learning, gate, publish.

Every phase leaves a file in the night's folder; a killed night goes on from the last one and ends with the same candidate. Until
the pointer moves, which is the last thing done, serving is as it was.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from nightschool.config.settings import Config
from nightschool.config.stream import open_configured
from nightschool.errors import NightError
from nightschool.registry.base_model import base_model_folder, describe_base_model
from nightschool.registry.folder import Registry
from nightschool.registry.release import NIGHT, REPORT, WEIGHTS
from nightschool.stream import Stream
from nightschool_nightly.examples.choose import choose_examples
from nightschool_nightly.examples.example import Selection, load_selection
from nightschool_nightly.examples.forgotten import refuse_forgotten
from nightschool_nightly.folder import NightFolder, NightFolders
from nightschool_nightly.freeze import manifest as night_manifest
from nightschool_nightly.freeze.freeze import freeze_tenant, redaction_of
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.freeze.settling import settling_of
from nightschool_nightly.gate.drift import PROMPTS, GeneralKl, sample_general
from nightschool_nightly.gate.evaluate import Answers, answer_holdout
from nightschool_nightly.gate.gate import Comparison, Decision, compare, decide
from nightschool_nightly.progress import Progress
from nightschool_nightly.publish.lineage import with_lineage
from nightschool_nightly.publish.publish import publish_release
from nightschool_nightly.publish.report import render_report
from nightschool_nightly.rewards.load import load_rubrics
from nightschool_nightly.rewards.rubric import Rubric
from nightschool_nightly.rollouts.engine import RolloutEngine
from nightschool_nightly.training.advantage import GroupFate
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.trainer import StepFigures, Trainer, schedule, seed_of, with_kl

_CHECKPOINT_EVERY = 5
_KL_EVERY = 10


class NightEnd(StrEnum):
    """How a night ends when nothing went wrong."""

    PUBLISHED = "published"
    """The candidate passed the gate and is the tenant's release."""
    REJECTED = "rejected"
    """The candidate did not pass; the release is as it was."""
    NOTHING_NEW = "nothing-new"
    """No new evidence since the last night."""
    NOTHING_TO_LEARN = "nothing-to-learn"
    """There is new traffic, but too little of it says how it turned out, or nothing in it differs in reward."""
    DRY_RUN = "dry-run"
    """Stopped after showing what would be trained on."""


@dataclass(frozen=True, slots=True)
class NightResult:
    """How a night ended."""

    end: NightEnd
    text: str
    release: str | None = None


@dataclass(frozen=True, slots=True)
class _Night:
    """Everything a night works with."""

    config: Config
    tenant: str
    model: Path
    rubrics: Mapping[str, Rubric]
    registry: Registry
    folders: NightFolders
    progress: Progress


def run_night(
    config: Config, tenant: str, *, dry_run: bool, resume: bool, progress: Progress, now_ms: Callable[[], int]
) -> NightResult:
    """Run one tenant's night. Errors leave the registry as it was."""
    rubrics = load_rubrics(config, tenant)
    folders = NightFolders(config.night.state, tenant)
    night = _Night(
        config, tenant, base_model_folder(config.model.path), rubrics, Registry(config.registry.path), folders, progress
    )
    with ExitStack() as stack:
        stack.enter_context(folders.locked())
        stream = stack.enter_context(open_configured(config.stream))
        manifest, folder = _resume(night) if resume else _freeze(night, stream, now_ms())
        if (before := folder.finished) is not None or not manifest.has_new_records:
            return NightResult(NightEnd.NOTHING_NEW, _nothing_new(before))
        if not resume and not dry_run:
            folder.write(night_manifest.FILE, manifest.to_json())
            folder.clear()
        if not dry_run:
            progress.watch(folder.path / "events.jsonl")
        progress.phase(
            "freeze", f"night {manifest.digest[:12]} of {tenant}: {sum(r.end - r.start for r in manifest.ranges)} records"
        )
        selection = _select(night, stream, manifest, folder, keep=not dry_run)
        refuse_forgotten(stream, manifest, selection)
        _show_selection(progress, selection)
        if dry_run:
            return NightResult(
                NightEnd.DRY_RUN, f"dry run: {len(selection.train)} prompts to learn from, {len(selection.holdout)} to test with"
            )
        if (too_little := _too_little(config, selection)) is not None:
            return _finish(folder, NightResult(NightEnd.NOTHING_TO_LEARN, too_little))
        return _learn_and_decide(night, stream, manifest, folder, selection)


def _nothing_new(before: Mapping[str, Any] | None) -> str:
    if before is None:
        return "no new evidence since the last published night; nothing to do"
    return f"no new evidence: the night on this evidence ended before ({before['end']}: {before['text']})"


# --- freeze and select --------------------------------------------------------------------------------------------------
def _freeze(night: _Night, stream: Stream, now_ms: int) -> tuple[NightManifest, NightFolder]:
    manifest = freeze_tenant(
        night.config,
        night.tenant,
        stream,
        registry=night.registry,
        model=night.model,
        rubrics=night.rubrics,
        now_ms=now_ms,
    )
    return manifest, night.folders.night(manifest.digest)


def _resume(night: _Night) -> tuple[NightManifest, NightFolder]:
    """The unfinished night's own manifest; what it froze must still be what is configured."""
    folder = night.folders.newest_unfinished()
    manifest = folder.manifest()
    rubrics = {task: rubric.digest for task, rubric in sorted(night.rubrics.items())}
    for name, frozen, now in (
        ("the rubrics", manifest.rubrics, rubrics),
        ("[outcomes]", manifest.settles_after_ms, settling_of(night.config, night.rubrics)),
        ("the base model", manifest.base_model, describe_base_model(night.model)),
        ("[privacy]", manifest.redaction, redaction_of(night.config, night.tenant)),
        ("[night]", manifest.settings, {k: v for k, v in asdict(night.config.night).items() if k in manifest.settings}),
    ):
        if frozen != now:
            raise NightError(f"{name} changed since night {manifest.digest[:12]} was frozen; start a new night without --resume")
    return manifest, folder


def _select(night: _Night, stream: Stream, manifest: NightManifest, folder: NightFolder, *, keep: bool) -> Selection:
    if (folder.path / "selection.json").exists():
        return load_selection(folder.path / "selection.json")
    night.progress.phase("episodes", "joining spans with outcomes")
    selection = choose_examples(night.config, stream, manifest, model=night.model, rubrics=night.rubrics, bury=keep)
    if keep:
        folder.write("selection.json", selection.to_json())
    return selection


def _show_selection(progress: Progress, selection: Selection) -> None:
    progress.note(
        f"{selection.num_new_episodes} new episodes: {len(selection.train)} prompts to learn from, {len(selection.holdout)} held out by user"
    )
    for reason, count in selection.dropped.items():
        progress.note(f"left out, {reason}: {count}")


def _too_little(config: Config, selection: Selection) -> str | None:
    for name, have, need in (
        ("to learn from", len(selection.train), config.night.min_train),
        ("held out to test with", len(selection.holdout), config.night.min_holdout),
    ):
        if have < need:
            found = (
                f"too little new evidence: scored prompts {name}: {have}" if have else f"no new evidence: no scored prompt {name}"
            )
            return f"{found}; at least {need} are needed; nothing was published"
    return None


# --- learn, decide, publish ---------------------------------------------------------------------------------------------
def _learn_and_decide(
    night: _Night, stream: Stream, manifest: NightManifest, folder: NightFolder, selection: Selection
) -> NightResult:
    candidate = folder.path / "candidate"
    evaluation = folder.read("evaluation.json")
    if evaluation is None:
        with tempfile.TemporaryDirectory(prefix="nightschool-adapters-") as adapters:
            evaluation = _learn_and_evaluate(night, manifest, folder, selection, Path(adapters))
        folder.write("evaluation.json", json.dumps(evaluation))
    if evaluation["no_signal"]:
        text = "no step had a group whose rewards differ: nothing to learn; look at the rubric and at ten answers"
        return _finish(folder, NightResult(NightEnd.NOTHING_TO_LEARN, text))
    answers = [Answers(a["policy"], tuple(a["texts"]), tuple(a["rewards"])) for a in evaluation["answers"]]
    figures = [StepFigures(**raw) for raw in evaluation["figures"]]
    decision = _decide(night, manifest, selection, answers, evaluation["kl"])
    records = sum(part.end - part.start for part in manifest.ranges)
    html = render_report(manifest, selection, figures, answers, decision, kl=evaluation["kl"], num_records=records)
    (candidate / REPORT).write_text(html, encoding="utf-8")
    (candidate / NIGHT).write_text(with_lineage(manifest, selection).to_json(), encoding="utf-8")
    if not decision.accepted:
        return _finish(folder, NightResult(NightEnd.REJECTED, "; ".join(decision.reasons)))
    refuse_forgotten(stream, manifest, selection)
    night.progress.phase("publish", "filing the release and moving the pointer")
    digest = publish_release(night.registry, candidate, manifest, decision, kl=evaluation["kl"])
    gain = decision.comparisons[0]
    text = f"release {digest[:12]}: held-out reward {gain.before:.2f} -> {gain.after:.2f} ({gain.difference:+.2f}) against {gain.against}"
    return _finish(folder, NightResult(NightEnd.PUBLISHED, text, digest))


def _learn_and_evaluate(
    night: _Night, manifest: NightManifest, folder: NightFolder, selection: Selection, adapters: Path
) -> dict[str, Any]:
    """Train, and answer the held-out prompts with every policy; what the gate and the report need."""
    settings = night.config.night
    night.progress.phase("rollouts", "starting vLLM and the trainer")
    policy, engine = _start_engines(night, manifest, adapters)
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(night.model)
    general = [
        tuple(tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, return_dict=False))
        for p in PROMPTS
    ]
    kl = GeneralKl(policy, sample_general(engine, general, seed=seed_of(manifest.digest, "general")))

    def answer(name: str, save: Callable[[Path], None] | None) -> Answers:
        return answer_holdout(name, engine, save, selection.holdout, night.rubrics, night=manifest.digest)

    answers = [answer("base", None)]
    if manifest.pointer.stable is not None:
        answers.append(answer("release", policy.save))  # nothing was learnt yet: the policy is the parent
    trainer = Trainer(
        policy,
        engine,
        settings=settings,
        rubrics=night.rubrics,
        night=manifest.digest,
        demonstrate=lambda text: (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id),
    )
    figures = _train(night, manifest, folder, selection, trainer, kl)
    policy.save(folder.path / "candidate")
    night.progress.phase("gate", f"{len(selection.holdout)} held-out prompts, paired by prompt, clustered by user")
    answers.append(answer("candidate", policy.save))
    return {
        "no_signal": not any(f.groups[GroupFate.KEPT] for f in figures),
        "kl": figures[-1].kl,  # measured after the last step, whatever its number
        "figures": [asdict(f) for f in figures],
        "answers": [asdict(a) for a in answers],
    }


def _start_engines(night: _Night, manifest: NightManifest, adapters: Path) -> tuple[Policy, RolloutEngine]:
    """The policy, on top of the parent release if there is one, and the engine."""
    settings, parent, rank, alpha = night.config.night, None, night.config.night.lora_rank, night.config.night.lora_alpha
    if manifest.pointer.stable is not None:
        release = night.registry.manifest(night.tenant, manifest.pointer.stable)
        rank, alpha = release.rank, release.alpha
        parent = night.registry.release_folder(night.tenant, manifest.pointer.stable) / WEIGHTS
    seed = seed_of(manifest.digest, "policy")
    policy = Policy(night.model, dtype=getattr(torch, manifest.dtype), rank=rank, alpha=alpha, seed=seed)
    if parent is not None:
        policy.load(parent)
    engine = RolloutEngine(
        night.model,
        adapters=adapters,
        targets=policy.targets,
        dtype=manifest.dtype,
        max_lora_rank=rank,
        max_model_len=night.config.serving.max_model_len,
        max_num_seqs=min(256, settings.prompts_per_step * settings.group_size),
        kv_cache_gib=night.config.serving.kv_cache_gib,
    )
    return policy, engine


def _train(
    night: _Night, manifest: NightManifest, folder: NightFolder, selection: Selection, trainer: Trainer, kl: GeneralKl
) -> list[StepFigures]:
    settings = night.config.night
    done, figures = 0, list[StepFigures]()
    if (found := folder.load_checkpoint()) is not None:
        done, state, figures = found
        trainer.restore(state)
        night.progress.note(f"going on after step {done}")
    batches = schedule(selection.train, night=manifest.digest, steps=settings.steps, prompts_per_step=settings.prompts_per_step)
    night.progress.phase(
        "learn", f"{settings.steps} steps of {settings.prompts_per_step} prompts x {settings.group_size} rollouts"
    )
    night.progress.heading()
    for number in range(done, settings.steps):
        step = trainer.step(number, batches[number])
        if (number + 1) % _KL_EVERY == 0 or number + 1 == settings.steps:
            step = with_kl(step, kl())
        figures.append(step)
        night.progress.step(step, settings.steps)
        if (number + 1) % _CHECKPOINT_EVERY == 0 or number + 1 == settings.steps:
            folder.save_checkpoint(number + 1, trainer.state(), figures)
    return figures


def _decide(night: _Night, manifest: NightManifest, selection: Selection, answers: Sequence[Answers], kl: float) -> Decision:
    settings = night.config.night
    *others, candidate = answers
    users = [example.cluster for example in selection.holdout]
    comparisons: list[Comparison] = [
        compare(
            other.policy,
            other.rewards,
            candidate.rewards,
            users,
            confidence=settings.confidence,
            seed=seed_of(manifest.digest, "bootstrap", other.policy),
        )
        for other in others
    ]
    for c in comparisons:
        night.progress.note(
            f"against {c.against}: {c.before:.3f} -> {c.after:.3f}, difference {c.difference:+.3f}, "
            f"lower bound {c.lower_bound:+.3f} ({c.num_prompts} prompts, {c.num_users} users)"
        )
    return decide(comparisons, min_holdout=settings.min_holdout, kl=kl, kl_budget=settings.kl_budget)


def _finish(folder: NightFolder, result: NightResult) -> NightResult:
    """Write how the night ended, last of all."""
    folder.write("finished.json", json.dumps({"end": result.end, "text": result.text, "release": result.release}))
    return result
