"""Steps 3 to 5 of a night, rollouts, rewards and GRPO, and the held-out answers that step 7 decides on.

All of it needs vLLM and the trainer, so it is one file apart: everything else in a night runs without them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from nightschool.machine import kv_cache_bytes, read_machine
from nightschool.registry.release import ADAPTER_CONFIG, WEIGHTS
from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.folder import EVALUATION, GENERAL
from nightschool_nightly.gate.drift import Drift
from nightschool_nightly.gate.evaluate import answer_holdout
from nightschool_nightly.gate.evaluation import Alternative, Answers, Contender, Evaluation
from nightschool_nightly.inputs import FrozenNight
from nightschool_nightly.rescue import Rescue, State, validation_examples
from nightschool_nightly.rollouts.engine import RolloutEngine
from nightschool_nightly.rollouts.engine_options import EngineSettings, needed_kv_bytes
from nightschool_nightly.rollouts.sampler import Sampler, SaveAdapter
from nightschool_nightly.training.advantage import GroupFate
from nightschool_nightly.training.anchor import Anchor
from nightschool_nightly.training.general import GeneralAnswers, Use, answer_prompts, choose_prompts, general_prompts
from nightschool_nightly.training.metrics import StepMetrics
from nightschool_nightly.training.policy import Policy
from nightschool_nightly.training.tokenizer import PolicyTokenizer
from nightschool_nightly.training.trainer import Trainer, schedule

_CHECKPOINT_EVERY = 5  # training steps: the most that a killed night repeats; three fp32 adapters are written each time
_KL_EVERY = 10  # training steps; each time costs a forward pass over the general prompts, for a curve of a few points
_MOST_SEQUENCES = 256  # in one batch of vLLM: each running one holds memory, the others wait inside it
_GENERAL_PROMPTS, _GENERAL_PER_STEP = 24, 4  # in the loss of a night and of each step; docs/night.md has the measurements


def learn_and_evaluate(night: FrozenNight, selection: Selection) -> Evaluation:
    """Train, and answer the held-out prompts with every policy while the engine runs, for the gate and the report."""
    if (known := night.folder.evaluation()) is not None:
        return known
    night.progress.phase("rollouts", "starting vLLM and the trainer")
    torch.set_num_threads(night.manifest.threads or torch.get_num_threads())  # vLLM lets nobody change it later
    with tempfile.TemporaryDirectory(prefix="nightschool-adapters-") as adapters:
        policy = _start_policy(night)
        parent = policy.state()
        engine = _start_engine(night, selection, policy, Path(adapters))
        tokenizer = PolicyTokenizer(night.inputs.model)
        general = _answer_general(night, engine, tokenizer)
        drift = Drift(policy, general.gate)
        base = _answer(night, selection.holdout, engine, Contender.BASE, None)
        release = None
        if (serving := night.manifest.pointer.stable) is not None:
            save = partial(_copy_release, night.inputs.registry.release_folder(night.inputs.tenant, serving))
            release = _answer(night, selection.holdout, engine, Contender.RELEASE, save)
        metrics = _train(night, selection, policy, engine, tokenizer, general, drift)
        kl, alternatives = _keep_budget(night, selection, policy, parent, engine, drift, metrics)
        policy.save(night.folder.candidate)
        night.progress.phase("gate", f"{len(selection.holdout)} held-out prompts, paired by prompt, clustered by user")
        candidate = _answer(night, selection.holdout, engine, Contender.CANDIDATE, policy.save)
    evaluation = Evaluation(tuple(metrics), kl, base, release, candidate, alternatives)
    night.folder.write(EVALUATION, evaluation.to_json())
    night.folder.drop_earlier()
    return evaluation


# --- what it learns with ------------------------------------------------------------------------------------------------
def _start_policy(night: FrozenNight) -> Policy:
    """The policy to train, on top of its parent release if it has one."""
    settings, parent, registry = night.inputs.config.night, night.manifest.parent, night.inputs.registry
    dtype, seed = getattr(torch, night.manifest.dtype), night.seed("policy")
    if parent is None:
        return Policy(night.inputs.model, dtype=dtype, rank=settings.lora_rank, alpha=settings.lora_alpha, seed=seed)
    # An adapter keeps the rank it was made with, whatever is configured by now.
    release = registry.manifest(night.inputs.tenant, parent)
    policy = Policy(night.inputs.model, dtype=dtype, rank=release.rank, alpha=release.alpha, seed=seed)
    policy.load(registry.release_folder(night.inputs.tenant, parent) / WEIGHTS)
    return policy


def _serving_rank(night: FrozenNight) -> int:
    release = night.manifest.pointer.stable
    return 0 if release is None else night.inputs.registry.manifest(night.inputs.tenant, release).rank


def _copy_release(release: Path, folder: Path) -> None:
    """Write the adapter of a release into `folder`; the night has checked it (`verify_parent`)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, ADAPTER_CONFIG):
        shutil.copyfile(release / name, folder / name)


def _start_engine(night: FrozenNight, selection: Selection, policy: Policy, adapters: Path) -> RolloutEngine:
    """vLLM, to sample from the policy; it reads each version of the adapter from the folder `adapters`."""
    settings, serving = night.inputs.config.night, night.inputs.config.serving
    max_num_seqs = min(_MOST_SEQUENCES, settings.prompts_per_step * settings.group_size)
    longest = max(len(example.prompt_ids) + example.max_tokens for example in (*selection.train, *selection.holdout))
    allowed = night.manifest.kv_cache_bytes or kv_cache_bytes(read_machine(), serving.kv_cache_gib)
    needed = needed_kv_bytes(longest, policy.kv_bytes_per_token, max_num_seqs=max_num_seqs, max_model_len=serving.max_model_len)
    fits = EngineSettings(
        dtype=night.manifest.dtype,
        targets=policy.targets,
        max_lora_rank=max(policy.rank, _serving_rank(night)),
        max_model_len=serving.max_model_len,
        max_num_seqs=max_num_seqs,
        kv_cache_bytes=min(allowed, needed or allowed),
    )
    return RolloutEngine(night.inputs.model, fits, adapters=adapters)


def _answer_general(night: FrozenNight, sampler: Sampler, tokenizer: PolicyTokenizer) -> GeneralAnswers:
    """The base model's answers to tonight's general prompts, sampled once: a resumed night reads them back."""
    if (known := night.folder.general_answers()) is not None:
        return known
    chosen = choose_prompts(general_prompts(Use.TRAINING), _GENERAL_PROMPTS, seed=night.seed("general prompts"))
    prompts = [tokenizer.chat_ids(prompt.messages) for prompt in (*chosen, *general_prompts(Use.GATE))]
    answered = answer_prompts(sampler, prompts, seed=night.seed("general answers"))
    general = GeneralAnswers(tuple(answered[: len(chosen)]), tuple(answered[len(chosen) :]))
    night.folder.write(GENERAL, general.to_json())
    return general


# --- 3 to 5: rollouts, rewards, GRPO ------------------------------------------------------------------------------------
def _train(
    night: FrozenNight,
    selection: Selection,
    policy: Policy,
    sampler: Sampler,
    tokenizer: PolicyTokenizer,
    general: GeneralAnswers,
    drift: Drift,
) -> list[StepMetrics]:
    """Every training step from the newest checkpoint on; each is steps 3, 4 and 5 of the night (`Trainer.step`)."""
    settings, digest, progress = night.inputs.config.night, night.manifest.digest, night.progress
    anchor = None
    if settings.kl_weight:
        anchor = Anchor(policy, general.training, per_step=_GENERAL_PER_STEP, seed=night.seed("general order"))
    trainer = Trainer(
        policy,
        sampler,
        settings=settings,
        rubrics=night.inputs.rubrics,
        night=digest,
        demonstrate=tokenizer.answer_ids,
        anchor=anchor,
    )
    done, metrics = 0, list[StepMetrics]()
    if (found := night.folder.load_checkpoint()) is not None:
        done, state, metrics = found
        trainer.restore(state)
        progress.note(f"going on after step {done}")
    batches = schedule(selection.train, night=digest, steps=settings.steps, prompts_per_step=settings.prompts_per_step)
    progress.phase("learn", f"{settings.steps} steps of {settings.prompts_per_step} prompts x {settings.group_size} rollouts")
    progress.heading(settings.steps - done)
    for number in range(done, settings.steps):
        step, is_last = trainer.step(number, batches[number]), number + 1 == settings.steps
        if (number + 1) % _KL_EVERY == 0 or is_last:
            step = step.with_kl(kl := drift.measure())
            if kl <= settings.kl_budget and not is_last:
                night.folder.save_earlier(number + 1, policy.state())
        metrics.append(step)
        progress.step(step, settings.steps)
        if (number + 1) % _CHECKPOINT_EVERY == 0 or is_last:
            night.folder.save_checkpoint(number + 1, trainer.state(), metrics)
    return metrics


# --- for 7, the gate ----------------------------------------------------------------------------------------------------
def _keep_budget(
    night: FrozenNight,
    selection: Selection,
    policy: Policy,
    parent: State,
    sampler: Sampler,
    drift: Drift,
    metrics: Sequence[StepMetrics],
) -> tuple[float, tuple[Alternative, ...]]:
    """The KL of the candidate, which `policy` is from here on, and what was weighed when the last step was over the budget."""
    kl, budget = metrics[-1].kl, night.inputs.config.night.kl_budget
    assert kl is not None, "the KL is measured after the last step, whatever its number"
    # Without a signal nothing was learned, and there is nothing to choose from.
    if kl <= budget or not any(step.groups[GroupFate.KEPT] for step in metrics):
        return kl, ()
    examples = validation_examples(selection.train, seed=night.seed("validation"))
    night.progress.phase(
        "budget", f"KL {kl:.3f} is over {budget:.3f}: smaller changes, chosen on {len(examples)} prompts of training users"
    )

    def validate() -> Sequence[float | None]:
        return _answer(night, examples, sampler, Contender.CANDIDATE, policy.save).rewards

    rescue = Rescue(policy, parent, kl_budget=budget, measure_kl=drift.measure, validate=validate)
    kls = {step.step + 1: step.kl for step in metrics if step.kl is not None}
    earlier = [(step, kls[step], state) for step, state in night.folder.load_earlier().items() if step < len(metrics)]
    alternatives = rescue.choose(len(metrics), kl, earlier)
    for each in alternatives:
        night.progress.note(each.describe())
    return next((each.kl for each in alternatives if each.chosen), kl), alternatives


def _answer(
    night: FrozenNight, examples: Sequence[Example], sampler: Sampler, policy: Contender, save: SaveAdapter | None
) -> Answers:
    return answer_holdout(policy, sampler, save, examples, night.inputs.rubrics, night=night.manifest.digest)
