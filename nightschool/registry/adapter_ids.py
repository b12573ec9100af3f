"""Adapter ids inside vLLM: each belongs to one tenant's weights, and none is ever issued twice.

    <folder>/<n>            who holds id n: the tenant and the SHA-256 of the weights
    <folder>/of-<sha256>    the id of a holder, by the SHA-256 of that line: so nothing is searched for
    <folder>/last           the highest id issued so far

Only the first kind decides. The other two say where to look: what they name is checked, and they are made anew where
they are missing, as in a registry of an older version. So a reservation reads and writes a handful of files, however
many ids there are.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from nightschool.errors import RegistryError
from nightschool.registry.durable import replace_durably

# vLLM counts static --lora-modules from 1, and keeps adapter ids in an int32.
_FIRST, _LAST = 1000, 2**31 - 1
_NEWEST = "last"


def reserve(folder: Path, holder: str) -> int:
    """The id of `holder`, issued now if it has none. The caller keeps other writers out of the folder."""
    if (newest := _number_in(folder / _NEWEST)) is None:
        newest = _index(folder)
    if (known := _number_in(_place_of(folder, holder))) is not None and _holder_of(folder, known) == holder:
        if known > newest:  # a writer was killed before it noted that
            replace_durably(folder / _NEWEST, str(known).encode())
        return known
    number = newest + 1
    # A writer that was killed may have issued ids above the highest one that is noted.
    while (found := _holder_of(folder, number)) is not None and found != holder:
        _note(folder, number, found)
        number += 1
    if number > _LAST:
        raise RegistryError(f"adapter ids up to {_LAST} are all taken in {folder}")
    if found is None:
        # It is on disk before it is used: an id that a crash loses would be given out again, for other weights.
        replace_durably(folder / str(number), f"{holder}\n".encode())
    _note(folder, number, holder)
    return number


def _index(folder: Path) -> int:
    """Note the holder of every id, in a folder where nothing is noted; the highest id. Once in a registry's life."""
    taken = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    for number in taken:
        if (holder := _holder_of(folder, number)) is not None and not (place := _place_of(folder, holder)).exists():
            place.write_text(str(number), encoding="utf-8")
    if not taken:
        return _FIRST - 1
    replace_durably(folder / _NEWEST, str(taken[-1]).encode())
    return taken[-1]


def _note(folder: Path, number: int, holder: str) -> None:
    replace_durably(_place_of(folder, holder), str(number).encode())
    replace_durably(folder / _NEWEST, str(number).encode())


def _place_of(folder: Path, holder: str) -> Path:
    return folder / f"of-{hashlib.sha256(holder.encode()).hexdigest()}"


def _holder_of(folder: Path, number: int) -> str | None:
    try:
        return (folder / str(number)).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _number_in(path: Path) -> int | None:
    """The id that a file names; None when there is no such file, or when it is damaged."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdecimal() else None
