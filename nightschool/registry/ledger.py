"""The ledger of a tenant's nights: what each night that ended has read, and what its release was made of.

    <root>/<tenant>/nights/<number>.json        from 1, written once; each names the digest of the one before

A night that read records has read them, whatever it decided: the next one asks the ledger where to go on, so that
records may expire once any night has read them. What a release learned from is another question. That is in the entry
of the night that made the release, and it counts for as long as the release, or one that was built on it, serves.

A user, conversation or trace is named by the hash that an erasure of it holds (`erasure.hash_subject`). Hashes of two
nights must match here, because whoever trained one release may not test the next; and a person who knows the subject
must find it, to say where it is. Nothing of it can be read: what is hashed is a pseudonym or a random id already.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nightschool.errors import RegistryError
from nightschool.registry.durable import create_durably, writing


@dataclass(frozen=True, slots=True)
class ReadRange:
    """How far the nights have read one partition."""

    topic: str
    topic_id: str
    partition: int
    end: int
    """One past the last offset read."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One night that ended after it had read records."""

    night: str
    """Digest of its manifest."""
    previous: str
    """Digest of the entry before; empty for the first."""
    end: str
    """"published", "rejected" or "nothing-to-learn". A release counts as published once it is filed."""
    release: str | None
    """Digest of the release that it filed."""
    parent: str | None
    """Digest of the release that this one was trained on top of."""
    read: tuple[ReadRange, ...]
    as_of_ms: int
    """The time by which outcomes had settled."""
    frozen_at_ms: int
    """When the night froze its input."""
    pseudonyms: tuple[str, ...] = ()
    """Digests of the secrets that made the pseudonyms of its users."""
    num_left: int = 0
    """Prompts that it could have used and that no step sampled: they are still news."""
    # The rest is empty where no release was filed: what nothing was made of is not kept.
    examples: tuple[str, ...] = ()
    """The examples that trained or tested: a hash of each, and one of what was known of its right answer."""
    prompts: tuple[str, ...] = ()
    """Hashes of the prompts that trained."""
    trained: tuple[str, ...] = ()
    """Hashes of the users (conversations or traces, where no user is named) that trained."""
    tested: tuple[str, ...] = ()
    """Hashes of those that tested."""
    schema: int = 1

    def to_bytes(self) -> bytes:
        """The canonical JSON whose SHA-256 the next entry names."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the entry."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


class Ledger:
    """The entries of one tenant's nights, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> tuple[LedgerEntry, ...]:
        """All of them; `RegistryError` unless each is whole and names the one before."""
        return tuple(self._checked())

    def up_to(self, digest: str) -> tuple[LedgerEntry, ...]:
        """Those up to the one with this digest, none for ""; `RegistryError` when it is not there."""
        if not digest:
            return ()
        found = []
        for entry in self._checked():
            found.append(entry)
            if entry.digest == digest:
                return tuple(found)
        raise RegistryError(
            f"{self.folder} has no night {digest[:12]}, which this night goes on from; restore the registry, or start a new"
            " night without --resume"
        )

    def add(self, entry: LedgerEntry) -> None:
        """File the entry of a night that ended, once: filing it again changes nothing.

        `RegistryError` when another night ended since this one began.
        """
        with writing(self.folder, "file the night") as folder:
            entries = self.entries()
            if entries and entries[-1] == entry:
                return
            if entry.previous != (entries[-1].digest if entries else ""):
                raise RegistryError(
                    f"another night of this tenant ended since night {entry.night[:12]} began (there are {len(entries)} in"
                    f" {folder}); start a new night without --resume"
                )
            create_durably(folder / _name(len(entries) + 1), entry.to_bytes())

    def _checked(self) -> Iterator[LedgerEntry]:
        previous, number = "", 1
        while (path := self.folder / _name(number)).exists():
            entry = _read(path)
            if entry.previous != previous:
                raise RegistryError(f"{path} does not follow the entry before it; restore the folder from a backup")
            yield entry
            previous, number = entry.digest, number + 1
        if (num_files := sum(path.stem.isdecimal() for path in self.folder.glob("*.json"))) >= number:
            raise RegistryError(
                f"{self.folder} has {num_files} entries and none of the number {number}; restore it from a backup"
            )


def in_lineage(entries: Sequence[LedgerEntry], release: str | None) -> tuple[LedgerEntry, ...]:
    """The entries of the nights that made `release` and everything it is built on, oldest first."""
    found = []
    for entry in reversed(entries):
        if release is not None and entry.release == release:
            found.append(entry)
            release = entry.parent
    return tuple(reversed(found))


def _name(number: int) -> str:
    return f"{number}.json"


def _read(path: Path) -> LedgerEntry:
    try:
        data = path.read_bytes()
        raw: dict[str, Any] = json.loads(data)
        raw["read"] = tuple(ReadRange(**part) for part in raw["read"])
        raw |= {name: tuple(raw[name]) for name in ("pseudonyms", "examples", "prompts", "trained", "tested")}
        entry = LedgerEntry(**raw)
        if entry.to_bytes() != data:
            raise ValueError("it is not the canonical JSON of its content")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RegistryError(f"{path} is no entry of a night ({error}); restore it from a backup") from None
    return entry
