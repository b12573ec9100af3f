"""Nights on top of a release, frozen pointers, and a day that has nothing to teach."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nightschool.config.reader import load_config
from nightschool.errors import NightError, RegistryError, ReleaseRejected
from nightschool.keys import hash_key
from nightschool.registry.base_model import base_model_folder
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.examples.example import Selection
from nightschool_nightly.folder import EVALUATION, NightFolder
from nightschool_nightly.freeze.freeze import freeze_tenant
from nightschool_nightly.night import NightEnd
from nightschool_nightly.rewards.load import load_rubrics
from tests.nightschool_nightly.night_workplace import (
    TENANT,
    Queue,
    Workplace,
    add_traffic,
    coin,
    make_workplace,
    renamed_queue,
)


def test_a_frozen_tenants_night_ends_at_once(tmp_path: Path) -> None:
    """It is looked at before anything else: nothing is read, trained or left, and the message says what to do."""
    workplace = make_workplace(tmp_path)
    frozen = workplace.registry.move_pointer(TENANT, workplace.registry.pointer(TENANT), frozen=True)
    for resume in (False, True):
        result = workplace.night_here(resume=resume)
        assert result.end is NightEnd.FROZEN and "so nothing was trained; unfreeze it" in result.text
        assert ("--resume" in result.text) is resume
    assert not list(tmp_path.glob("nights/*/*/*"))
    assert workplace.registry.pointer(TENANT) == frozen


def test_a_registry_that_is_not_mounted_stops_the_night(tmp_path: Path) -> None:
    """It would learn from the base model again, and file its release below the place where the registry belongs."""
    workplace = make_workplace(tmp_path)
    mounted = workplace.registry.root.rename(tmp_path / "elsewhere")
    workplace.registry.root.mkdir()
    with pytest.raises(RegistryError, match="mount the registry there"):
        workplace.night_here()
    assert not list(workplace.registry.root.iterdir()) and not list(tmp_path.glob("nights/*/*/*"))
    workplace.registry.root.rmdir()
    mounted.rename(workplace.registry.root)


def test_a_release_on_another_base_model_stops_the_night_before_it_learns(
    tmp_path: Path, file_release: Callable[..., str]
) -> None:
    """The parent is checked as serving checks it, before a folder is made or a model is loaded."""
    workplace = make_workplace(tmp_path)
    release = file_release(workplace.registry, tenant=TENANT)
    with pytest.raises(ReleaseRejected, match="another base model: weights is aaaaaaaaaaaa"):
        workplace.night_here()
    assert not list(tmp_path.glob("nights/*/*/*"))
    assert workplace.registry.pointer(TENANT).stable == release


def test_a_night_whose_parent_no_longer_serves_is_not_resumed(tmp_path: Path, file_release: Callable[..., str]) -> None:
    """It could only end in a conflict, so it says so before it trains on. A pointer that was only frozen has not moved."""
    workplace = make_workplace(tmp_path)
    config, registry = load_config(tmp_path / "nightschool.toml"), workplace.registry
    model = base_model_folder(config.model.path)
    rubrics = load_rubrics(config, TENANT)
    with SqliteStream(tmp_path / "stream.db", partitions=2) as stream:
        manifest = freeze_tenant(config, TENANT, stream, registry=registry, model=model, rubrics=rubrics, now_ms=1)
    folder = NightFolder(tmp_path / "nights" / TENANT / manifest.digest)
    folder.write("night.json", manifest.to_json())
    folder.write("finished.json", json.dumps({"end": "rejected", "text": "of before", "release": None}))
    pointer = registry.move_pointer(TENANT, registry.pointer(TENANT), frozen=True)
    registry.move_pointer(TENANT, pointer, frozen=False)
    with pytest.raises(NightError, match="no unfinished night"):
        workplace.night_here(resume=True)
    (folder.path / "finished.json").unlink()
    folder.write("selection.json", Selection((), (), {}, 0).to_json())
    assert workplace.night_here(resume=True).end is NightEnd.NOTHING_TO_LEARN  # it went on
    (folder.path / "finished.json").unlink()
    file_release(registry, tenant=TENANT, base_model=manifest.base_model, pointer=registry.pointer(TENANT))
    with pytest.raises(NightError, match=r"was moved since night \w+ was frozen; start a new night without --resume"):
        workplace.night_here(resume=True)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_chain_of_nights_follows_the_tenant_and_not_the_noise(tmp_path: Path) -> None:
    """The first night learns two queues, the second learns new ones on top of its release, and a day of coins is rejected.

    The key was changed before the last: it begins with the base model, and the release is still what it has to beat.
    """
    workplace = make_workplace(tmp_path)
    done = workplace.night()
    first = workplace.registry.pointer(TENANT).stable
    assert first is not None and "published" in done.stdout, (done.stdout, done.stderr)
    found = held_out(workplace)
    # Neither word alone is right for more than about half of the messages.
    assert {"card", "loan"} <= set(found["answers"]["candidate"]["texts"])
    assert mean(found["answers"]["candidate"]["rewards"]) > 0.75 and "release" not in found["answers"]

    done = after_another_day(workplace, range(100, 148), renamed_queue)
    second = workplace.registry.pointer(TENANT).stable
    assert "published" in done.stdout and "against release" in done.stdout, (done.stdout, done.stderr)
    assert second is not None and workplace.registry.manifest(TENANT, second).parent == first
    found = held_out(workplace)
    assert mean(found["answers"]["release"]["rewards"]) < 0.2, "the release answers with the old names"
    assert mean(found["answers"]["candidate"]["rewards"]) > 0.5

    change_key(workplace)
    done = after_another_day(workplace, range(200, 248), coin)
    assert "tonight learns on top of the base model" in done.stdout
    assert "rejected" in done.stdout and "not better than release" in done.stdout, (done.stdout, done.stderr)
    assert workplace.registry.pointer(TENANT).stable == second
    assert sorted(workplace.registry.releases(TENANT)) == sorted([first, second])


def change_key(workplace: Workplace) -> None:
    config = workplace.folder / "nightschool.toml"
    config.write_text(f'{config.read_text()}key_sha256 = ["{hash_key("a new key")}"]\n')


def after_another_day(workplace: Workplace, numbers: range, queue: Queue) -> subprocess.CompletedProcess[str]:
    """The night after more users have asked."""
    with SqliteStream(workplace.folder / "stream.db", partitions=2) as stream:
        add_traffic(stream, numbers, queue=queue)
    done = workplace.night()
    assert done.returncode == 0, done.stderr
    return done


def held_out(workplace: Workplace) -> dict[str, Any]:
    """The evaluation of the newest night."""
    newest = max(workplace.folder.glob(f"nights/{TENANT}/*/{EVALUATION}"), key=lambda path: path.stat().st_mtime_ns)
    raw: dict[str, Any] = json.loads(newest.read_text())
    return raw


def mean(rewards: Sequence[float | None]) -> float:
    known = [reward for reward in rewards if reward is not None]
    return sum(known) / len(known)
