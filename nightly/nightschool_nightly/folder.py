"""A night's folder: what it has done so far, each file appearing whole or not at all.

<state>/<tenant>/<night digest>/
    night.json              the manifest; the night exists from here on
    selection.json          its examples
    checkpoint-<n>/         adapter, optimizer and metrics after n steps; the newest complete one counts
    candidate/              the adapter that came out
    evaluation.json         held-out answers and scores of base, release and candidate
    finished.json           how it ended; written last
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
from nightschool_nightly.freeze import manifest as night_manifest
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.training.metrics import StepMetrics

_STATE, _METRICS = "state.safetensors", "metrics.json"


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

    @property
    def finished(self) -> Mapping[str, Any] | None:
        """How the night ended; None while it has not."""
        found: Mapping[str, Any] | None = self.read("finished.json")
        return found

    def manifest(self) -> NightManifest:
        return NightManifest.from_json((self.path / night_manifest.FILE).read_text(encoding="utf-8"))

    # --- checkpoints ----------------------------------------------------------------------------------------------------
    def save_checkpoint(self, steps: int, state: Mapping[str, torch.Tensor], metrics: Sequence[StepMetrics]) -> None:
        """Keep the state after `steps` steps; older checkpoints go once it is complete."""
        draft, target = self.path / f".checkpoint-{steps}.tmp", self.path / f"checkpoint-{steps}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, draft / _STATE)
        (draft / _METRICS).write_text(json.dumps([metrics_to_json(item) for item in metrics]))
        for name in (_STATE, _METRICS):
            with (draft / name).open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        for old in self._checkpoints():
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

    def load_checkpoint(self) -> tuple[int, dict[str, torch.Tensor], list[StepMetrics]] | None:
        """The newest complete checkpoint: steps done, state, metrics."""
        found = self._checkpoints()
        if not found:
            return None
        newest = found[-1]
        metrics = [StepMetrics(**raw) for raw in json.loads((newest / _METRICS).read_text())]
        return int(newest.name.removeprefix("checkpoint-")), load_file(newest / _STATE), metrics

    def _checkpoints(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))

    def clear(self, *, keep: Collection[str] = (night_manifest.FILE,)) -> None:
        """Forget everything but the manifest, to start the same night over; or everything but `keep`."""
        for path in self.path.iterdir():
            if path.name not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


class NightFolders:
    """Every night of one tenant."""

    def __init__(self, state: Path, tenant: str) -> None:
        self.root = state / tenant

    def night(self, digest: str) -> NightFolder:
        return NightFolder(self.root / digest)

    def newest_unfinished(self) -> NightFolder:
        """The unfinished night frozen last; `NightError` when there is none."""
        nights = [NightFolder(path.parent) for path in sorted(self.root.glob(f"*/{night_manifest.FILE}"))]
        unfinished = [(night.manifest().frozen_at_ms, str(night.path), night) for night in nights if night.finished is None]
        if not unfinished:
            raise NightError(f"no unfinished night in {self.root}; start one without --resume")
        return max(unfinished)[-1]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One night of a tenant at a time."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NightError(
                    f"another night of this tenant is running (lock {self.root / '.lock'}); wait for it to end"
                ) from None
            yield


def metrics_to_json(metrics: StepMetrics) -> dict[str, Any]:
    """The metrics as plain JSON."""
    return {name: getattr(metrics, name) for name in StepMetrics.__slots__}
