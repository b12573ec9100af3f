"""The rubrics of a tenant, one for each task."""

from __future__ import annotations

from nightschool.config.settings import Config
from nightschool.errors import NightError
from nightschool_nightly.rewards.rubric import Rubric, load_rubric


def load_rubrics(config: Config, tenant: str) -> dict[str, Rubric]:
    """The tenant's rubric of each task; `NightError` when there is none, or two for one task."""
    rubrics = [load_rubric(path) for path in config.tenant(tenant).rubrics]
    if not rubrics:
        raise NightError(f"tenant {tenant!r} has no rubric; name one in [tenants.{tenant}] rubrics")
    tasks = [rubric.task for rubric in rubrics]
    if doubled := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise NightError(f"tenant {tenant!r} has two rubrics for task {doubled[0]!r}; one per task is allowed")
    return {rubric.task: rubric for rubric in rubrics}
