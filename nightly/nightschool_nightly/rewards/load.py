"""The rubrics of a tenant, one for each task."""

from __future__ import annotations

from pathlib import Path

from nightschool.config.settings import Config
from nightschool.errors import NightError
from nightschool_nightly.rewards.rubric import Rubric, load_rubric


def load_rubrics(config: Config, tenant: str) -> dict[str, Rubric]:
    """The tenant's rubrics by task; `NightError` when it has none, or two for one task."""
    paths = config.tenant(tenant).rubrics
    if not paths:
        raise NightError(f"tenant {tenant!r} has no rubric; name at least one file in [tenants.{tenant}] rubrics")
    rubrics: dict[str, Rubric] = {}
    files: dict[str, Path] = {}
    for path in paths:
        rubric = load_rubric(path)
        if rubric.task in rubrics:
            raise NightError(
                f"tenant {tenant!r} has two rubrics for task {rubric.task!r}, {files[rubric.task]} and {path};"
                " one for each task is allowed: take one out, or put the items of both in one file"
            )
        rubrics[rubric.task], files[rubric.task] = rubric, path
    return rubrics
