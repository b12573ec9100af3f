"""Keeps our errors from the app: in production, no error of ours is raised into it.

An internal error is counted, and logged once for each message, and the app goes on as if nightschool were not there.
Under pytest it is raised, so that our tests and the app's own tests see it. `NIGHTSCHOOL_STRICT=1` raises always, also
for what the app itself got wrong (an outcome that can never be understood); `NIGHTSCHOOL_STRICT=0` never raises.
"""

from __future__ import annotations

import logging
import os
from types import TracebackType

logger = logging.getLogger("nightschool")
_MAX_LOGGED = 1000  # different messages; they are remembered, so their number must be bounded


def is_strict(*, default: bool) -> bool:
    """Whether to raise: what `NIGHTSCHOOL_STRICT` says, else `default`."""
    setting = os.environ.get("NIGHTSCHOOL_STRICT", "")
    return setting == "1" if setting in ("0", "1") else default


class Shield:
    """`with shield:` swallows, counts and logs every `Exception` of ours. Threads and nested blocks may share one."""

    def __init__(self) -> None:
        self.num_errors = 0
        self._logged: set[str] = set()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False  # there was no error, or the app is being stopped
        return self._count(error)

    def caught(self, error: Exception) -> None:
        """The same for an error already caught: a plain `try` costs less than `with`, and a request needs several."""
        if not self._count(error):
            raise error

    def _count(self, error: Exception) -> bool:
        """Count and log `error`; True when it is to be swallowed."""
        self.num_errors += 1
        self.log_once(f"internal error, swallowed: {type(error).__name__}: {error}", exc_info=error)
        return not is_strict(default="PYTEST_VERSION" in os.environ)

    def log_once(self, message: str, *, exc_info: BaseException | None = None) -> None:
        """Log a warning the first time `message` appears, so that a lasting fault does not fill the app's log."""
        if message not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(message)
            logger.warning(message, exc_info=exc_info)
