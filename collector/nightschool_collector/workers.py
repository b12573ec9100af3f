"""Several worker processes behind one port.

The parent listens and forks; every worker accepts from the same socket, so an idle one takes the next connection. The
parent only watches: it passes a signal on, replaces a worker that died, and ends when all workers have ended. A worker
ends by itself when its parent was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from types import FrameType

from nightschool.errors import NightschoolError

RESTART_PAUSE_S = 1.0  # a worker that dies at once is not started a thousand times a second
_SETTINGS_ARE_WRONG = 2  # the exit status of a worker that cannot start; another one could not either

Run = Callable[[int, Callable[[], None]], None]
"""The work of one worker, given its index and what to call when it is ready."""


class Workers:
    """`num_workers` forks of this process that all do `run`."""

    def __init__(self, num_workers: int, run: Run) -> None:
        self._num_workers, self._run = num_workers, run
        self._pids: dict[int, int] = {}
        self._stopping = False
        self._alive_reader, self._alive_writer = os.pipe()  # the reader sees its end when the parent is gone
        self._ready_reader, self._ready_writer = os.pipe()  # one byte from each worker that is ready

    def supervise(self, ready: Callable[[], None]) -> None:
        """Run until a signal has stopped all workers; call `ready` when all are. `SystemExit` for wrong settings."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._pass_on)
        for index in range(self._num_workers):
            self._start(index)
        Thread(target=self._await_ready, args=(ready,), daemon=True).start()
        while self._pids:
            pid, status = os.wait()
            index = self._pids.pop(pid, -1)
            code = os.waitstatus_to_exitcode(status)
            if code == _SETTINGS_ARE_WRONG:
                self._stop(signal.SIGTERM, None)
                self._await_all()
                raise SystemExit(code)
            if not self._stopping and index >= 0:
                print(f"nightschool collect: worker {index} ended with {code}, starting another", file=sys.stderr, flush=True)
                time.sleep(RESTART_PAUSE_S)
                if not self._stopping:
                    self._start(index)

    def _start(self, index: int) -> None:
        pid = os.fork()
        if pid:
            self._pids[pid] = index
            if self._stopping:  # the signal came while this worker was being started
                os.kill(pid, signal.SIGTERM)
            return
        os.close(self._alive_writer)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until `run` sets its own
        os._exit(self._work(index))

    def _work(self, index: int) -> int:
        Thread(target=self._end_with_parent, daemon=True).start()
        try:
            self._run(index, self._say_ready)
        except NightschoolError as error:
            print(f"nightschool collect: {error}", file=sys.stderr, flush=True)
            return _SETTINGS_ARE_WRONG
        except KeyboardInterrupt:
            return 130
        return 0

    def _say_ready(self) -> None:
        os.write(self._ready_writer, b".")

    def _end_with_parent(self) -> None:
        os.read(self._alive_reader, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _await_ready(self, ready: Callable[[], None]) -> None:
        missing = self._num_workers
        while missing > 0:
            missing -= len(os.read(self._ready_reader, missing))
        ready()

    def _await_all(self) -> None:
        with suppress(ChildProcessError):
            while self._pids:
                self._pids.pop(os.wait()[0], None)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for pid in list(self._pids):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for pid in list(self._pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
