"""A night's folder: what it has done so far, each file appearing whole or not at all.

<state>/<tenant>/<night digest>/
    night.json              step 1: the manifest; the night exists from here on
    selection.json          step 2: its examples
    general.json            steps 3 to 5: the base model's answers to general prompts
    events.jsonl            a line for each phase and each training step, for programs that watch the night
    checkpoint-<n>/         steps 3 to 5: adapter, optimizer and metrics after n training steps; the newest counts
    earlier-<n>.safetensors steps 3 to 5: the newest few adapters that kept the KL budget, in case that the last does not
    candidate/              the adapter that came out; before step 8 also report.html and night.json
    evaluation.json         held-out answers and scores of base, release and candidate: what step 7 decides on
    finished.json           how it ended; written last

The weights of a night stay until the next one has ended: a person may want to look at a candidate that was rejected.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nightschool.errors import NightError
from nightschool_nightly.examples.example import Selection, load_selection
from nightschool_nightly.freeze import manifest as night_manifest
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.gate.evaluation import Evaluation
from nightschool_nightly.training.general import GeneralAnswers
from nightschool_nightly.training.metrics import StepMetrics

MANIFEST = night_manifest.FILE
SELECTION = "selection.json"
EVENTS = "events.jsonl"
CANDIDATE = "candidate"
GENERAL = "general.json"
EVALUATION = "evaluation.json"
FINISHED = "finished.json"
_CHECKPOINT, _STATE, _METRICS = "checkpoint-", "state.safetensors", "metrics.json"
_EARLIER, _SUFFIX = "earlier-", ".safetensors"
_MOST_EARLIER = 3  # an adapter of a large model is hundreds of megabytes, and older ones have learned less


class NightFolder:
    """The folder of one night."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, text: str) -> None:
        """Write a file durably, by rename."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{name}.tmp"
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / name)

    def read(self, name: str) -> Any | None:
        """The JSON in `name`, or None when the night did not get that far."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def clear(self, *, keep: Collection[str] = (MANIFEST,)) -> None:
        """Delete everything but the manifest, to start the same night over; or everything but `keep`."""
        for path in self.path.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    # --- what each step leaves ------------------------------------------------------------------------------------------
    def manifest(self) -> NightManifest:
        """What the night froze; `NightError` when the file was altered."""
        return NightManifest.from_json((self.path / MANIFEST).read_text(encoding="utf-8"))

    def selection(self) -> Selection | None:
        """The night's examples; None before they are chosen."""
        path = self.path / SELECTION
        return load_selection(path) if path.exists() else None

    @property
    def events(self) -> Path:
        """The file of the night's events."""
        return self.path / EVENTS

    @property
    def candidate(self) -> Path:
        """The folder of the adapter that came out."""
        return self.path / CANDIDATE

    def general_answers(self) -> GeneralAnswers | None:
        """The base model's answers to tonight's general prompts; None before they are sampled."""
        path = self.path / GENERAL
        return GeneralAnswers.from_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def evaluation(self) -> Evaluation | None:
        """What the gate decides on; None before the night is evaluated."""
        path = self.path / EVALUATION
        return Evaluation.from_json(path.read_text(encoding="utf-8")) if path.exists() else None

    @property
    def finished(self) -> Mapping[str, Any] | None:
        """How the night ended; None while it has not."""
        found: Mapping[str, Any] | None = self.read(FINISHED)
        return found

    def drop_weights(self) -> None:
        """Delete checkpoints and the candidate's weights; what a person reads of the night stays."""
        for checkpoint in self.path.glob(f"{_CHECKPOINT}*"):
            shutil.rmtree(checkpoint)
        for weights in self.path.rglob("*.safetensors"):
            weights.unlink()

    # --- checkpoints ----------------------------------------------------------------------------------------------------
    def save_checkpoint(self, steps: int, state: Mapping[str, torch.Tensor], metrics: Sequence[StepMetrics]) -> None:
        """Keep the state after `steps` training steps; older checkpoints are deleted once it is complete."""
        draft, target = self.path / f".{_CHECKPOINT}{steps}.tmp", self.path / f"{_CHECKPOINT}{steps}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, draft / _STATE)
        (draft / _METRICS).write_text(json.dumps([step.to_json() for step in metrics]))
        for name in (_STATE, _METRICS):
            with (draft / name).open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        for old in self._checkpoints():
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

    def load_checkpoint(self) -> tuple[int, dict[str, torch.Tensor], list[StepMetrics]] | None:
        """The newest complete checkpoint: training steps done, state, metrics of each; None before the first."""
        found = self._checkpoints()
        if not found:
            return None
        newest = found[-1]
        metrics = [StepMetrics.from_json(raw) for raw in json.loads((newest / _METRICS).read_text())]
        return _steps_of(newest), load_file(newest / _STATE), metrics

    def save_earlier(self, steps: int, adapter: Mapping[str, torch.Tensor]) -> None:
        """Keep the adapter after `steps` training steps, which kept the KL budget; only the newest few stay."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{_EARLIER}{steps}.tmp"
        save_file({name: tensor.contiguous().cpu() for name, tensor in adapter.items()}, draft)
        draft.replace(self.path / f"{_EARLIER}{steps}{_SUFFIX}")
        for old in self._earlier()[:-_MOST_EARLIER]:
            old.unlink()

    def load_earlier(self) -> dict[int, dict[str, torch.Tensor]]:
        """The adapters that were kept, by training steps done, oldest first."""
        return {_earlier_steps(path): load_file(path) for path in self._earlier()}

    def drop_earlier(self) -> None:
        """Delete them: nothing is chosen any more."""
        for path in self._earlier():
            path.unlink()

    def _earlier(self) -> list[Path]:
        return sorted(self.path.glob(f"{_EARLIER}*{_SUFFIX}"), key=_earlier_steps)

    def _checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first: by number, because checkpoint-10 sorts before checkpoint-9 by name."""
        return sorted(self.path.glob(f"{_CHECKPOINT}*"), key=_steps_of)


class NightFolders:
    """Every night of one tenant."""

    def __init__(self, state: Path, tenant: str) -> None:
        """`state` is [night] state, the folder of all tenants' nights."""
        self.root = state / tenant

    def night(self, digest: str) -> NightFolder:
        """The folder of the night whose manifest has this digest; it need not exist yet."""
        return NightFolder(self.root / digest)

    def newest_unfinished(self) -> NightFolder:
        """The unfinished night frozen last; `NightError` when there is none."""
        nights = [NightFolder(path.parent) for path in sorted(self.root.glob(f"*/{MANIFEST}"))]
        unfinished = [(night.manifest().frozen_at_ms, str(night.path), night) for night in nights if night.finished is None]
        if not unfinished:
            raise NightError(f"no unfinished night in {self.root}; start one without --resume")
        return max(unfinished)[-1]

    def prune(self, *, keep: str) -> None:
        """Delete the weights of every night that ended, but not of the one with the digest `keep`."""
        for path in sorted(self.root.glob(f"*/{FINISHED}")):
            if path.parent.name != keep:
                NightFolder(path.parent).drop_weights()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other night of the tenant runs; `NightError` when one does already."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NightError(
                    f"another night of this tenant is running (lock {self.root / '.lock'}); wait for it to end"
                ) from None
            yield


def _earlier_steps(path: Path) -> int:
    return int(path.name.removeprefix(_EARLIER).removesuffix(_SUFFIX))


def _steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_CHECKPOINT))
