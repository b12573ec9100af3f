"""Releases on local disk: who may delete what, and when."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nightschool.errors import ReleaseRejected
from nightschool.registry.folder import Registry
from nightschool.registry.release import WEIGHTS, BaseModel
from nightschool_serving.releases.adapter_cache import AdapterCache, content_digest

Publish = Callable[..., str]
MakeCache = Callable[[], AdapterCache]


@pytest.fixture
def make_cache(tmp_path: Path, registry: Registry, tiny_base_model: BaseModel) -> MakeCache:
    """Makes the cache of one more server, on the same folder."""
    return lambda: AdapterCache(tmp_path / "cache", registry, base_model=tiny_base_model, dtype="float32", max_rank=16)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_release_is_deleted_when_its_last_server_drops_it(make_cache: MakeCache, publish_tiny: Publish) -> None:
    """Two servers share one copy; the first to drop it leaves it to the other."""
    digest = publish_tiny("bank", 1)
    first, second = make_cache(), make_cache()
    mine, theirs = first.fetch("bank", digest), second.fetch("bank", digest)
    assert mine == theirs
    first.drop(mine)
    assert (theirs.folder / WEIGHTS).is_file()
    second.drop(theirs)
    assert names(mine.folder.parent) == set()


def test_a_release_for_another_dtype_is_not_kept(make_cache: MakeCache, publish_tiny: Publish) -> None:
    """It is refused with a sentence, as any release that this server must not load, and leaves nothing on disk."""
    cache, digest = make_cache(), publish_tiny("bank", 1, dtype="bfloat16")
    with pytest.raises(ReleaseRejected, match="in bfloat16, this server has it in float32"):
        cache.fetch("bank", digest)
    cache.prune()
    assert not [path for path in cache.root.rglob("*") if path.name == WEIGHTS]


def test_pruning_keeps_what_any_server_holds(make_cache: MakeCache, publish_tiny: Publish) -> None:
    """Releases of earlier runs and old drafts are deleted; what any server holds, and a new draft, stays."""
    left, ours, theirs = (publish_tiny("bank", seed) for seed in (1, 2, 3))
    earlier = make_cache()
    folder = earlier.fetch("bank", left).folder
    del earlier  # the process ended: its handles are closed
    os.closerange(*handles_of(folder))
    cache, other = make_cache(), make_cache()
    cache.fetch("bank", ours)
    other.fetch("bank", theirs)
    (folder.parent / ".young-draft").mkdir()
    (folder.parent / ".old-draft").mkdir()
    os.utime(folder.parent / ".old-draft", (0, 0))
    cache.prune()
    assert names(folder.parent) == {ours, theirs, ".young-draft"}


def handles_of(folder: Path) -> tuple[int, int]:
    """The range of this process's one open handle on `folder`."""
    open_handles = Path("/proc/self/fd")
    number = next(int(link.name) for link in open_handles.iterdir() if link.exists() and link.resolve() == folder)
    return number, number + 1


def test_a_spoiled_copy_is_repaired_under_the_servers_that_hold_it(make_cache: MakeCache, publish_tiny: Publish) -> None:
    """The folder never disappears: whoever held it holds it still, and keeps it after the repairer has dropped it."""
    digest = publish_tiny("bank", 1)
    first, second = make_cache(), make_cache()
    held = first.fetch("bank", digest)
    good = (held.folder / WEIGHTS).read_bytes()
    (held.folder / WEIGHTS).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    (held.folder / "left-over").touch()
    assert second.fetch("bank", digest) == held
    assert (held.folder / WEIGHTS).read_bytes() == good
    second.drop(held)
    assert (held.folder / WEIGHTS).is_file()
    assert names(held.folder.parent) == {digest}
    first.drop(held)
    assert names(held.folder.parent) == set()


def test_pruning_beside_another_server_that_prunes(make_cache: MakeCache, publish_tiny: Publish, monkeypatch: Any) -> None:
    """What disappears between listing and looking is nobody's error."""
    digest = publish_tiny("bank", 1)
    adapter = make_cache().fetch("bank", digest)
    os.closerange(*handles_of(adapter.folder))
    cache, listed = make_cache(), Path.glob

    def pruned_meanwhile(folder: Path, pattern: str) -> Iterator[Path]:
        found = [*listed(folder, pattern), adapter.folder.parent / ".gone-draft"]
        return iter(found)

    monkeypatch.setattr(Path, "glob", pruned_meanwhile)
    cache.prune()
    assert names(adapter.folder.parent) == set()


def test_a_copy_that_fails_leaves_nothing(
    make_cache: MakeCache, publish_tiny: Publish, registry: Registry, tmp_path: Path
) -> None:
    """Neither a refused release nor an unreadable one leaves files or locks behind."""
    digest = publish_tiny("bank", 1)
    cache = make_cache()
    (registry.release_folder("bank", digest) / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ReleaseRejected):
        cache.fetch("bank", digest)
    with pytest.raises(FileNotFoundError):
        cache.fetch("bank", "0" * 64)
    assert names(tmp_path / "cache" / "bank") == set()


def test_a_content_digest_tells_part_boundaries_apart() -> None:
    """ab+c, a+bc and abc have three digests: SHA-256 over the parts, each after its length in 8 bytes."""
    assert content_digest(b"abc") == hashlib.sha256((3).to_bytes(8, "little") + b"abc").hexdigest()
    assert (
        len({content_digest(b"ab", b"c"), content_digest(b"a", b"bc"), content_digest(b"abc"), content_digest(b"abc", b"")}) == 4
    )
