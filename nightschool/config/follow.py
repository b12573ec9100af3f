"""Follows nightschool.toml while a service runs, so that keys are added and revoked without a restart.

A thread looks at the file every quarter of a second, and at once when it is told to (SIGHUP). It compares the file's
signature and reads the file only when that has changed. A file that cannot be read, or is wrong, changes nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from nightschool.config.reader import load_config
from nightschool.config.settings import Config
from nightschool.errors import NightschoolError
from nightschool.keys import KeyRing

# A change is acted on when two looks in a row saw the same file, because a text editor may write it in pieces and the
# first half of a file can be valid TOML without the tenants of the second: so half a second, well within one.
LOOK_SECONDS = 0.25

Signature = tuple[int, int, int]
"""What changes when a file is written or replaced: inode, size, time of the last change in nanoseconds."""


class ConfigFollower:
    """Hands every new version of a configuration file to `apply`, in a thread of its own."""

    def __init__(
        self,
        path: str | Path,
        apply: Callable[[Config], None],
        *,
        say: Callable[[str], None],
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """`apply` may refuse a version with a `NightschoolError`; `say` prints one line for the operator."""
        self._path, self._apply, self._say, self._look_seconds = Path(path), apply, say, look_seconds
        self._wake, self._ended = threading.Event(), threading.Event()
        # None, so that the first look applies the file again: it may have changed since the service read it.
        self._applied: Signature | None = None
        self._seen: Signature | None = None
        self._thread = threading.Thread(target=self._run, name="nightschool-config", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def look_now(self) -> None:
        """Look at the file at once; safe in a signal handler."""
        self._wake.set()

    def look_on_hangup(self) -> None:
        """Make SIGHUP, which would end the process, a reason to look at once. Only in the main thread."""
        signal.signal(signal.SIGHUP, lambda number, frame: self.look_now())

    def close(self) -> None:
        """Stop following."""
        self._ended.set()
        self._wake.set()
        self._thread.join()

    def look(self, *, at_once: bool = False) -> None:
        """One look; a change is applied when the look before saw the same file, or `at_once`."""
        found = self._signature()
        if found is not None and found != self._applied and (at_once or found == self._seen):
            self._applied = found
            self._read()
        self._seen = found

    def _run(self) -> None:
        while not self._ended.is_set():
            told = self._wake.is_set()
            self._wake.clear()
            self.look(at_once=told)
            self._wake.wait(self._look_seconds)

    def _signature(self) -> Signature | None:
        """None for a file that is not there: it is being replaced, or somebody has taken it away."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _read(self) -> None:
        try:
            self._apply(load_config(self._path))
        except NightschoolError as error:
            self._say(f"the changed configuration is not used, what was read before stays in force: {error}")


class KeyChanges:
    """Applies the API keys of a changed configuration to a key ring, and says what has changed."""

    def __init__(self, ring: KeyRing, keys: Mapping[str, tuple[str, ...]], *, say: Callable[[str], None]) -> None:
        """`keys` are those in `ring`: SHA-256 by tenant, with every tenant that the service was started for."""
        self._ring, self._keys, self._say = ring, dict(keys), say
        self._strangers: set[str] = set()

    def apply(self, config: Config) -> None:
        """Make the keys of `config` the ones that count; `ConfigError` if two tenants share one."""
        found = {name: config.tenants[name].key_sha256 if name in config.tenants else () for name in self._keys}
        self._ring.replace(found)
        for name in sorted(found):
            added, revoked = (set(a) - set(b) for a, b in ((found[name], self._keys[name]), (self._keys[name], found[name])))
            if added or revoked:
                self._say(f"tenant {name}: {len(added)} keys added, {len(revoked)} revoked, {len(set(found[name]))} in force")
        self._keys = found
        strangers = set(config.tenants) - set(self._keys)
        for name in sorted(strangers - self._strangers):
            self._say(f"tenant {name} is new in the configuration: restart this service to admit it, its keys do not count yet")
        self._strangers = strangers
