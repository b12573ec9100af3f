"""What a night looks at before it computes anything: the pointer, and the release it is to learn on top of."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from nightschool import semconv
from nightschool.config.reader import load_config
from nightschool.config.settings import Config
from nightschool.errors import NightError, ReleaseRejected
from nightschool.registry.base_model import base_model_folder
from nightschool.registry.folder import Registry
from nightschool.stream import Record
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.examples.example import Selection
from nightschool_nightly.folder import NightFolder
from nightschool_nightly.freeze.freeze import freeze_tenant
from nightschool_nightly.night import NightEnd, NightResult, run_night
from nightschool_nightly.progress import Progress
from nightschool_nightly.rewards.load import load_rubrics

TENANT = "bank"
SETTINGS = """
[stream]
url = "sqlite:stream.db"
[registry]
path = "registry"
[night]
state = "nights"
[tenants.bank]
rubrics = ["rubric.toml"]
"""
RUBRIC = 'task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"\n'


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A workplace with one record that no night has read."""
    (tmp_path / "nightschool.toml").write_text(SETTINGS)
    (tmp_path / "rubric.toml").write_text(RUBRIC)
    with SqliteStream(tmp_path / "stream.db", partitions=2) as stream:
        stream.append(semconv.TOPIC_SPANS, [Record(b"key", b"", {semconv.HEADER_TENANT: TENANT.encode()})])
    return load_config(tmp_path / "nightschool.toml")


@pytest.fixture
def registry(config: Config) -> Registry:
    return Registry(config.registry.path)


def night(config: Config, *, resume: bool = False) -> NightResult:
    """A night in this process: those below end before a model is loaded."""
    progress = Progress(Console(file=io.StringIO()))
    return run_night(config, TENANT, dry_run=False, resume=resume, progress=progress, now_ms=lambda: 1_760_000_000_000)


def test_a_frozen_tenants_night_ends_at_once(config: Config, registry: Registry, tmp_path: Path) -> None:
    """It is looked at before anything else: nothing is read, trained or left, and the message says what to do."""
    frozen = registry.move_pointer(TENANT, registry.pointer(TENANT), frozen=True)
    for resume in (False, True):
        result = night(config, resume=resume)
        assert result.end is NightEnd.FROZEN and "so nothing was trained; unfreeze it" in result.text
        assert ("--resume" in result.text) is resume
    assert not list(tmp_path.glob("nights/*/*/*"))
    assert registry.pointer(TENANT) == frozen


def test_a_release_on_another_base_model_stops_the_night_before_it_learns(
    config: Config, registry: Registry, tmp_path: Path, file_release: Callable[..., str]
) -> None:
    """The parent is checked as serving checks it, before a folder is made or a model is loaded."""
    release = file_release(registry, tenant=TENANT)
    with pytest.raises(ReleaseRejected, match="another base model: weights is aaaaaaaaaaaa"):
        night(config)
    assert not list(tmp_path.glob("nights/*/*/*"))
    assert registry.pointer(TENANT).stable == release


def test_a_night_whose_parent_no_longer_serves_is_not_resumed(
    config: Config, registry: Registry, tmp_path: Path, file_release: Callable[..., str]
) -> None:
    """It could only end in a conflict, so it says so before it trains on. A pointer that was only frozen has not moved."""
    model, rubrics = base_model_folder(config.model.path), load_rubrics(config, TENANT)
    with SqliteStream(tmp_path / "stream.db", partitions=2) as stream:
        manifest = freeze_tenant(config, TENANT, stream, registry=registry, model=model, rubrics=rubrics, now_ms=1)
    folder = NightFolder(tmp_path / "nights" / TENANT / manifest.digest)
    folder.write("night.json", manifest.to_json())
    folder.write("selection.json", Selection((), (), {}, 0).to_json())
    pointer = registry.move_pointer(TENANT, registry.pointer(TENANT), frozen=True)
    registry.move_pointer(TENANT, pointer, frozen=False)
    assert night(config, resume=True).end is NightEnd.NOTHING_TO_LEARN  # it went on
    assert json.loads((folder.path / "finished.json").read_text())["end"] == "nothing-to-learn"
    (folder.path / "finished.json").unlink()
    file_release(registry, tenant=TENANT, base_model=manifest.base_model, pointer=registry.pointer(TENANT))
    with pytest.raises(NightError, match=r"was moved since night \w+ was frozen; start a new night without --resume"):
        night(config, resume=True)
