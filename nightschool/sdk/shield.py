"""The line between our errors and the app: nothing of ours is raised into an app in production.

An internal error is counted and logged, once per kind, and the app goes on as if nightschool were not there. Under pytest
it is raised, so that ours and the app's own tests see it. `NIGHTSCHOOL_STRICT=1` raises always, also what the app itself
got wrong (an outcome that can never be understood); `NIGHTSCHOOL_STRICT=0` never raises.
"""

from __future__ import annotations

import logging
import os
from types import TracebackType

logger = logging.getLogger("nightschool")


def is_strict(*, default: bool) -> bool:
    """Whether to raise: what `NIGHTSCHOOL_STRICT` says, else `default`."""
    setting = os.environ.get("NIGHTSCHOOL_STRICT", "")
    return setting == "1" if setting in ("0", "1") else default


class Shield:
    """`with shield:` swallows, counts and logs every `Exception` of ours. Threads and nested calls share one."""

    def __init__(self) -> None:
        self.num_errors = 0
        self._logged: set[str] = set()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False  # nothing happened, or the app is being stopped
        return self._count(error)

    def caught(self, error: Exception) -> None:
        """The same for an error already caught: a plain `try` costs nothing, and a request passes several."""
        if not self._count(error):
            raise error

    def _count(self, error: Exception) -> bool:
        """Count and log `error`; whether to swallow it."""
        self.num_errors += 1
        self.log_once(f"internal error, swallowed: {type(error).__name__}: {error}", exc_info=error)
        return not is_strict(default="PYTEST_VERSION" in os.environ)

    def log_once(self, message: str, *, exc_info: BaseException | None = None) -> None:
        """Log a warning the first time `message` appears; a broken hop must not fill the app's log."""
        if message not in self._logged and len(self._logged) < 1000:
            self._logged.add(message)
            logger.warning(message, exc_info=exc_info)
