"""Starts and stops the demo's own processes: a collector and a serving endpoint on free local ports."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self


def free_ports(count: int) -> list[int]:
    """Local ports on which nobody listens."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Server:
    """One `nightschool` service as a process of its own; leaving the context stops it."""

    def __init__(self, command: str, config: Path, health: str, log: Path) -> None:
        self._health, self._log = health, log
        self._output = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nightschool", command, "--config", str(config)], stdout=self._output, stderr=subprocess.STDOUT
        )

    def wait_ready(self, seconds: float) -> None:
        """Wait until the server answers its health route."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise SystemExit(f"a server stopped while starting; the end of {self._log}:\n{self._log.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(self._health, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.3)
        raise SystemExit(f"a server was not ready after {seconds:.0f} s; see {self._log}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
