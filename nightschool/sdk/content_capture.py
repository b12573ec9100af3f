"""Whether the texts of an app are recorded, for all tasks or task by task. Spans are recorded in any case."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from nightschool.errors import ConfigError, shown
from nightschool.sdk.shield import Shield

CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_NO_CONTENT_IN_SPANS = ("NO_CONTENT", "EVENT_ONLY", "FALSE")
"""The values of that variable that keep texts out of spans."""


@dataclass(frozen=True, slots=True)
class ContentCapture:
    """For which tasks texts are recorded."""

    default: bool = True
    """For every task that `by_task` does not name."""
    by_task: Mapping[str, bool] = field(default_factory=dict)

    def of(self, task: str) -> bool:
        """Whether texts of `task` are recorded."""
        return self.by_task.get(task, self.default)


def parse_capture(given: bool | Mapping[str, bool] | None, shield: Shield) -> ContentCapture:
    """The argument `capture_content`, checked; None means what OpenTelemetry's own variable says.

    A mapping is copied, so that the app may change its own afterwards. `ConfigError` for anything else.
    """
    if given is None:
        return ContentCapture(_default_capture(shield))
    if isinstance(given, bool):
        return ContentCapture(given)
    if isinstance(given, Mapping) and all(isinstance(value, bool) for value in given.values()):
        return ContentCapture(by_task=dict(given))
    raise ConfigError(
        f"capture_content is {shown(given)}; it must be True, False, or a mapping of tasks to them like {{'triage': False}}"
    )


def _default_capture(shield: Shield) -> bool:
    """True, unless the variable turns texts off. That is logged, because nothing can be learned without texts."""
    value = os.environ.get(CAPTURE_VARIABLE, "").strip()
    if value.upper() not in _NO_CONTENT_IN_SPANS:
        return True
    shield.log_once(f"texts are not recorded, because {CAPTURE_VARIABLE} is {value}; capture_content=True records them")
    return False
