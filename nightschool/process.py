"""How a command becomes a service: this process, replaced by a fresh interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nightschool.registry.base_model import cache_folder


def become_python(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by a fresh interpreter with `arguments`."""
    sys.stdout.flush()
    environment = dict(os.environ)
    # Compute threads that spin while they wait for each other stand still when anything else runs on the machine, and something
    # does: the app, the serving endpoint. A short spin costs nothing alone and made a loaded machine 2.5 times faster.
    environment.setdefault("GOMP_SPINCOUNT", "1000")
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):
        # A service imports thousands of modules; compiling them anew costs it ten seconds. Kept in our own cache instead.
        environment.setdefault("PYTHONPYCACHEPREFIX", str(cache_folder() / "bytecode"))
    os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606 - no shell is wanted
