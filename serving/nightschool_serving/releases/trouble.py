"""What a tenant is told when its release cannot be loaded, and what only the log says."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nightschool.errors import RegistryError, ReleaseRejected

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Trouble:
    """One reason, in words for the tenant and in full for the operator."""

    told: str
    """For the tenant: no path of this machine, and an id by which the operator finds `full` in the log."""
    full: str


def trouble_of(tenant: str, error: BaseException, *, hidden: Iterable[Path]) -> Trouble:
    """What `error` means for `tenant`; the folders `hidden` stay out of what it is told.

    The same error has the same id, so that one that lasts is logged once.
    """
    full = f"{type(error).__name__}: {error}"
    number = hashlib.sha256(f"{tenant}\0{full}".encode()).hexdigest()[:8]
    return Trouble(f"{_told(error, hidden)} (error {number} in the server's log)", f"error {number}: {full}")


def _told(error: BaseException, hidden: Iterable[Path]) -> str:
    if isinstance(error, ReleaseRejected):
        text = str(error)
        for folder in hidden:
            text = text.replace(f"{folder}/", "").replace(str(folder), "the folder")
        return text
    if isinstance(error, RegistryError):
        return "the registry, or the tenant's pointer in it, cannot be read"
    if isinstance(error, TimeoutError):
        return f"no answer in time: {error}"
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return "the disk of this server is full, so the release cannot be copied to it"
        return f"the release cannot be copied to this server: {error.strerror or type(error).__name__}"
    return "the engine could not load the release; it is tried again"
