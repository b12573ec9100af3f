"""A tenant's rubrics: one for each task."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightschool.config.settings import Config, TenantConfig
from nightschool.errors import NightError, RubricError
from nightschool_nightly.rewards.load import load_rubrics

RUBRIC = 'task = "{task}"\n[[items]]\nname = "short"\nkind = "check"\ncheck = "length"\n'


def config(folder: Path, *files: str) -> Config:
    return Config(tenants={"bank": TenantConfig(rubrics=tuple(folder / name for name in files))})


def test_rubrics_are_found_by_task(tmp_path: Path) -> None:
    """Each file stands under the task it names."""
    for task in ("triage", "reply"):
        (tmp_path / f"{task}.toml").write_text(RUBRIC.format(task=task))
    found = load_rubrics(config(tmp_path, "triage.toml", "reply.toml"), "bank")
    assert {task: rubric.task for task, rubric in found.items()} == {"triage": "triage", "reply": "reply"}


def test_a_tenant_needs_a_rubric(tmp_path: Path) -> None:
    """Without one nothing could be scored; the message says where to name one."""
    with pytest.raises(NightError, match=r"tenant 'bank' has no rubric; name at least one file in \[tenants.bank\] rubrics"):
        load_rubrics(config(tmp_path), "bank")


def test_two_rubrics_for_one_task_are_refused(tmp_path: Path) -> None:
    """Which of them counts would depend on their order; the message names both files."""
    for name in ("one.toml", "two.toml"):
        (tmp_path / name).write_text(RUBRIC.format(task="triage"))
    with pytest.raises(NightError, match=r"two rubrics for task 'triage', .*one\.toml and .*two\.toml; one for each task"):
        load_rubrics(config(tmp_path, "one.toml", "two.toml"), "bank")


def test_a_wrong_rubric_stops_the_tenant(tmp_path: Path) -> None:
    """A mistake in one file is an error, not a task without a rubric."""
    (tmp_path / "one.toml").write_text(RUBRIC.format(task=""))
    with pytest.raises(RubricError, match=r"one\.toml: task is ''"):
        load_rubrics(config(tmp_path, "one.toml"), "bank")
