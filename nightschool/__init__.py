"""nightschool: your production traffic teaches your models while you sleep.

This is what an app imports. It needs OpenTelemetry only; services are started with the `nightschool` command. The names
below are loaded when they are first used, so that the command line and the services start without the tracer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightschool.sdk.api import (
        configure,
        flush,
        instrument_openai,
        model_call,
        outcome,
        outcome_token,
        request,
        shutdown,
        stats,
        tag_join,
        tool_call,
    )
    from nightschool.sdk.calls import ModelCall, ToolCall
    from nightschool.sdk.client import Client
    from nightschool.sdk.export.exporter import Stats
    from nightschool.sdk.export.queue import LaneStats
    from nightschool.sdk.request import Request, current_request

__all__ = [
    "configure",
    "request",
    "current_request",
    "instrument_openai",
    "model_call",
    "tool_call",
    "tag_join",
    "outcome",
    "outcome_token",
    "flush",
    "shutdown",
    "stats",
    "Client",
    "Request",
    "ModelCall",
    "ToolCall",
    "Stats",
    "LaneStats",
]

_HOMES = {
    "Client": "client",
    "Request": "request",
    "current_request": "request",
    "ModelCall": "calls",
    "ToolCall": "calls",
    "Stats": "export.exporter",
    "LaneStats": "export.queue",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nightschool' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"nightschool.sdk.{_HOMES.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
