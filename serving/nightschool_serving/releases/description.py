"""What `GET /nightschool/v1/releases` shows to a tenant."""

from __future__ import annotations

from typing import Any

from nightschool.semconv import BASE_RELEASE
from nightschool_serving.releases.plan import TenantState
from nightschool_serving.releases.routing import Route


def description(state: TenantState, route: Route) -> dict[str, Any]:
    """Which release answers, and what was refused or is tried again, and why."""
    delay = state.delay
    return {
        "tenant": route.tenant,
        "epoch": route.epoch,
        "release": route.stable.release if route.stable else BASE_RELEASE,
        "state": "unavailable" if route.unavailable else "serving",
        "reason": route.unavailable,
        "fallback_for": state.fallback_for,
        "previous": state.previous.release if state.previous else None,
        "rejected": state.rejected,
        "rejections": state.rejections,
        "delayed": delay and {"release": delay.pointer.stable, "attempts": delay.attempts, "reason": delay.reason},
        "registry": state.unreachable or "reachable",
    }
