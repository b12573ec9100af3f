"""A night's folder: files that appear whole, and what counts after a crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nightschool.errors import NightError
from nightschool_nightly.examples.example import Selection
from nightschool_nightly.folder import EVALUATION, SELECTION, NightFolder, NightFolders
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.gate.evaluation import Answers, Contender, Evaluation
from nightschool_nightly.training.metrics import StepMetrics

STATE = {"adapter/a": torch.tensor([[1.5, -2.0]]), "adam/step/a": torch.tensor(3.0)}


def metrics(step: int) -> StepMetrics:
    return StepMetrics(step, 0.5, None, 8, 1, 2, {"kept": 1, "uniform": 0}, 0.1, None, 0, 0, 10, 40, None, 0.25)


@pytest.fixture
def folder(tmp_path: Path) -> NightFolder:
    return NightFolder(tmp_path / "night")


def test_a_checkpoint_comes_back_whole(folder: NightFolder) -> None:
    """Steps, state and metrics are those that were saved; before the first there is none."""
    assert folder.load_checkpoint() is None
    folder.save_checkpoint(5, STATE, [metrics(n) for n in range(5)])
    found = folder.load_checkpoint()
    assert found is not None
    steps, state, read = found
    assert steps == 5 and read == [metrics(n) for n in range(5)]
    assert set(state) == set(STATE) and all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_the_newest_complete_checkpoint_counts(folder: NightFolder) -> None:
    """By number and not by name, and older ones are removed once a newer one is complete."""
    for steps in (5, 10, 9):
        folder.save_checkpoint(steps, STATE, [])
    assert [path.name for path in sorted(folder.path.iterdir())] == ["checkpoint-9"]
    (folder.path / "checkpoint-9").rename(folder.path / "kept")
    folder.save_checkpoint(10, STATE, [])
    (folder.path / "kept").rename(folder.path / "checkpoint-9")  # as after a crash between the new one and the removal
    found = folder.load_checkpoint()
    assert found is not None and found[0] == 10


def test_a_torn_draft_does_not_count(folder: NightFolder) -> None:
    """A checkpoint that was being written when the night was killed is ignored, and does not stop the next one."""
    folder.save_checkpoint(5, STATE, [])
    torn = folder.path / ".checkpoint-10.tmp"
    torn.mkdir()
    (torn / "state.safetensors").write_bytes(b"half a sta")
    found = folder.load_checkpoint()
    assert found is not None and found[0] == 5
    folder.save_checkpoint(10, STATE, [metrics(9)])
    found = folder.load_checkpoint()
    assert found is not None and (found[0], found[2]) == (10, [metrics(9)]) and not torn.exists()


def test_a_checkpoint_may_be_saved_again(folder: NightFolder) -> None:
    """A resumed night that repeats its last step replaces that checkpoint."""
    folder.save_checkpoint(5, STATE, [])
    folder.save_checkpoint(5, {"adapter/a": torch.zeros(2)}, [metrics(4)])
    found = folder.load_checkpoint()
    assert found is not None and set(found[1]) == {"adapter/a"} and found[2] == [metrics(4)]


def test_the_newest_adapters_within_the_budget_are_kept(folder: NightFolder) -> None:
    """Three of them, by number; a night that repeats a step writes the same ones again."""
    for steps in (10, 20, 30, 100, 30, 100):
        folder.save_earlier(steps, {"a": torch.full((2,), float(steps))})
    found = folder.load_earlier()
    assert list(found) == [20, 30, 100]
    assert all(torch.equal(state["a"], torch.full((2,), float(steps))) for steps, state in found.items())
    folder.drop_earlier()
    assert folder.load_earlier() == NightFolder(folder.path / "nothing").load_earlier() == {}


def test_files_appear_whole_or_not_at_all(folder: NightFolder) -> None:
    """A written file leaves no draft, a draft is no file, and what was not written is None."""
    assert folder.read("evaluation.json") is None
    folder.write("evaluation.json", '{"kl": 0.5}')
    folder.write("evaluation.json", '{"kl": 0.25}')
    (folder.path / ".finished.json.tmp").write_text('{"end": "publ')
    assert folder.read("evaluation.json") == {"kl": 0.25}
    assert not folder.finished
    folder.write("finished.json", '{"end": "published"}')
    assert folder.finished == {"end": "published"}
    assert not [path for path in folder.path.iterdir() if path.name.endswith(".tmp")]


def test_each_step_finds_what_it_left(folder: NightFolder) -> None:
    """The selection and the evaluation come back as they were written; a step that has not run has left nothing."""
    assert folder.selection() is None and folder.evaluation() is None
    selection = Selection((), (), {"no-outcome": 3}, 3)
    folder.write(SELECTION, selection.to_json())
    evaluation = Evaluation(
        (metrics(0),), 0.25, Answers(Contender.BASE, (), (), ()), None, Answers(Contender.CANDIDATE, (), (), ())
    )
    folder.write(EVALUATION, evaluation.to_json())
    assert folder.selection() == selection and folder.evaluation() == evaluation


def test_starting_over_keeps_only_the_manifest(folder: NightFolder) -> None:
    """Nothing of an earlier try of the same night is left to be mixed in."""
    folder.save_checkpoint(5, STATE, [])
    for name in ("night.json", "selection.json", "evaluation.json"):
        folder.write(name, "{}")
    folder.clear()
    assert [path.name for path in folder.path.iterdir()] == ["night.json"]


def test_weights_of_ended_nights_go_when_the_next_one_has_ended(tmp_path: Path) -> None:
    """Each checkpoint is three adapters: report, manifest and answers stay, and so does a night that can be resumed."""
    folders = NightFolders(tmp_path, "acme")
    for name, ended in (("before", True), ("open", False), ("last", True)):
        folder = folders.night(name)
        for file in ("night.json", "evaluation.json", *(("finished.json",) if ended else ())):
            folder.write(file, "{}")
        folder.save_checkpoint(5, STATE, [])
        folder.candidate.mkdir()
        for file in ("adapter_model.safetensors", "report.html"):
            (folder.candidate / file).write_text("x")
    folders.prune(keep="last")
    left = {name: {path.name for path in folders.night(name).path.rglob("*") if path.is_file()} for name in ("before", "open")}
    assert left["before"] == {"night.json", "evaluation.json", "finished.json", "report.html"}
    assert left["open"] == {
        "night.json",
        "evaluation.json",
        "state.safetensors",
        "metrics.json",
        "adapter_model.safetensors",
        "report.html",
    }
    assert folders.night("last").load_checkpoint() and (folders.night("last").candidate / "adapter_model.safetensors").exists()


def test_the_unfinished_night_frozen_last_is_resumed(tmp_path: Path, make_manifest: Callable[..., NightManifest]) -> None:
    """By the time it was frozen, finished ones and other folders left aside."""
    folders = NightFolders(tmp_path, "acme")
    nights = {}
    for frozen_at, steps in ((30, 1), (10, 2), (20, 3)):
        manifest = make_manifest(frozen_at_ms=frozen_at, settings={"steps": steps})
        nights[frozen_at] = folders.night(manifest.digest)
        nights[frozen_at].write("night.json", manifest.to_json())
    (tmp_path / "acme" / "stray").mkdir()
    assert folders.newest_unfinished().path == nights[30].path
    nights[30].write("finished.json", json.dumps({"end": "rejected"}))
    assert folders.newest_unfinished().manifest().frozen_at_ms == 20


def test_nothing_to_resume_says_so(tmp_path: Path) -> None:
    """Without an unfinished night, --resume is an error that says what to do."""
    with pytest.raises(NightError, match=r"no unfinished night in .*acme; start one without --resume"):
        NightFolders(tmp_path, "acme").newest_unfinished()


def test_one_night_of_a_tenant_at_a_time(tmp_path: Path) -> None:
    """A second night of the tenant is refused while the first runs, another tenant's is not, and afterwards it may."""
    one, same, other = NightFolders(tmp_path, "acme"), NightFolders(tmp_path, "acme"), NightFolders(tmp_path, "globex")
    with one.locked(), other.locked(), pytest.raises(NightError, match="another night of this tenant is running"), same.locked():
        pass
    with same.locked():
        pass
