"""nightschool: your production traffic teaches your models while you sleep.

What an app imports. Everything here needs OpenTelemetry only; services are started with the `nightschool` command.
The names below are loaded when first used, so that the command line and the services start without the tracer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nightschool.calls import ModelCall, ToolCall
    from nightschool.exporter import Stats
    from nightschool.lane import LaneStats
    from nightschool.sdk import (
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
    from nightschool.tracer import Client, Request, current_request

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
    "Client": "tracer",
    "Request": "tracer",
    "current_request": "tracer",
    "ModelCall": "calls",
    "ToolCall": "calls",
    "Stats": "exporter",
    "LaneStats": "lane",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nightschool' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"nightschool.{_HOMES.get(name, 'sdk')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
