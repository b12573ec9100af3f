"""How a command becomes a service: a fresh interpreter takes the place of this process."""

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
    # Compute threads spin while they wait for each other. When the app or the serving endpoint runs on the same
    # machine, the threads spin without getting on. A short spin costs nothing on an idle machine and made a loaded one
    # 2.5 times faster.
    environment.setdefault("GOMP_SPINCOUNT", "1000")
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):
        # A service imports thousands of modules, and compiling them anew takes ten seconds: the bytecode goes into our
        # own cache.
        environment.setdefault("PYTHONPYCACHEPREFIX", str(cache_folder() / "bytecode"))
    os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606 - no shell is wanted
