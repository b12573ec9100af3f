"""A process that has imported what takes seconds to import, and forks for every command that a test runs.

What runs is a process of its own with the arguments, folder, environment and exit status of `python -m MODULE`; only
the imports are shared. Each line of standard input is a command in JSON, each line of output its exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn


class WarmPython:
    """The test's side of such a process."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Start the process; it imports `modules` before the first command."""
        command = [sys.executable, __file__, *modules]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(
        self, module: str, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout_s: int = 300
    ) -> subprocess.CompletedProcess[str]:
        """`python -m module arguments`; one that takes longer than `timeout_s` is killed by SIGALRM."""
        assert self._process.stdin and self._process.stdout
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("out", "err")]
            command = {
                "argv": [module, *arguments],
                "cwd": str(cwd or Path.cwd()),
                "env": dict(os.environ if env is None else env),
                "files": [str(path) for path in files],
                "timeout_s": timeout_s,
            }
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            status = json.loads(self._process.stdout.readline())
            return subprocess.CompletedProcess([module, *arguments], status, *(path.read_text() for path in files))

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            _become(json.loads(line))
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)


def _become(command: dict[str, Any]) -> NoReturn:
    """Be the command, and end with its status."""
    code = 1
    try:
        signal.alarm(command["timeout_s"])
        os.chdir(command["cwd"])
        os.environ.clear()
        os.environ.update(command["env"])
        for number, name in enumerate([os.devnull, *command["files"]]):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        sys.argv = command["argv"]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1:])
