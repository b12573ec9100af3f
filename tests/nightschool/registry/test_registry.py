"""The registry: a release is whole or absent, pointers move step by step, adapter ids are never used twice."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from nightschool.errors import ConfigError, PointerConflict, RegistryError, ReleaseRejected
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.release import MANIFEST, WEIGHTS, ReleaseManifest, verify_release


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def describer(adapters: Any, source: Path, **changes: Any) -> Callable[[int], ReleaseManifest]:
    return lambda engine_id: adapters.manifest(source, engine_id=engine_id, **changes)


def file_one(registry: Registry, adapters: Any, *, seed: int = 0, **changes: Any) -> str:
    source = adapters.source(f"source-{seed}-{changes.get('tenant', 'acme')}", seed=seed)
    return registry.add(source, describer(adapters, source, **changes))


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file of a registry that a reader may look at: releases and pointers."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in files
        if path.name != ".lock" and path.parent.name != "engine_ids"
    }


# --- filing and reading -----------------------------------------------------------------------------------------------
def test_a_filed_release_reads_back_and_verifies(registry: Registry, adapters: Any) -> None:
    """Add, list, read, verify: the release is what the night described, under its digest."""
    source = adapters.source()
    digest = registry.add(source, describer(adapters, source))
    folder = registry.release_folder("acme", digest)
    assert registry.releases("acme") == [digest]
    assert registry.manifest("acme", digest) == adapters.manifest(source, engine_id=1000)
    verified = verify_release(folder, tenant="acme", digest=digest, base_model=adapters.base_model, max_rank=8)
    assert verified == registry.manifest("acme", digest)
    assert (folder / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    assert registry.pointer("acme") == Pointer()


def test_filing_the_same_release_again_changes_nothing(registry: Registry, adapters: Any) -> None:
    """The same adapter gives the same digest and the same adapter id, and the files are not touched."""
    source = adapters.source()
    digest = registry.add(source, describer(adapters, source))
    manifest = registry.release_folder("acme", digest) / MANIFEST
    before = manifest.stat()
    assert registry.add(source, describer(adapters, source)) == digest
    assert (manifest.stat().st_ino, manifest.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in (registry.root / "engine_ids").glob("[0-9]*")) == ["1000"]


def test_what_serving_would_refuse_is_not_filed(registry: Registry, adapters: Any) -> None:
    """An adapter that cannot be served is rejected at publish, and no trace of it is visible."""
    source = adapters.source(rank_pattern={"q_proj": 64})
    with pytest.raises(ReleaseRejected, match="rank or alpha patterns"):
        registry.add(source, describer(adapters, source))
    assert snapshot(registry.root) == {}


def test_a_file_that_changes_while_it_is_filed_is_refused(registry: Registry, adapters: Any) -> None:
    """When the digests are not those of the copied bytes, nothing is filed."""
    source = adapters.source()
    manifest = adapters.manifest(source, engine_id=1000)
    (source / "report.html").write_text("<p>worse</p>")
    with pytest.raises(ReleaseRejected, match=r"report\.html does not have the size and SHA-256"):
        registry.add(source, lambda _: manifest)
    assert snapshot(registry.root) == {}


@pytest.mark.parametrize("name", ["../escape", "a/b", "/etc/passwd", ".."])
def test_a_file_name_with_a_folder_in_it_is_refused(registry: Registry, adapters: Any, name: str) -> None:
    """A manifest cannot make the registry read or write outside the two folders."""
    source = adapters.source()
    manifest = adapters.manifest(source)
    files = (replace(manifest.files[0], name=name), *manifest.files[1:])
    (adapters.root / "escape").write_text("outside")
    with pytest.raises(RegistryError):
        registry.add(source, lambda _: replace(manifest, files=files))
    assert snapshot(registry.root) == {}
    assert not (registry.root / "escape").exists()


def test_a_missing_file_is_a_registry_error(registry: Registry, adapters: Any) -> None:
    """A source without weights, or without a file it names, is one clear error."""
    source = adapters.source()
    manifest = adapters.manifest(source)
    (source / "report.html").unlink()
    with pytest.raises(RegistryError, match=r"cannot file the release in .*the registry is as it was"):
        registry.add(source, lambda _: manifest)
    (source / WEIGHTS).unlink()
    with pytest.raises(RegistryError, match=r"cannot reserve an adapter id in "):
        registry.add(source, lambda _: manifest)
    assert snapshot(registry.root) == {}


@pytest.mark.parametrize("tenant", ["..", "a/b", "", "A", ".", "engine_ids", "a\0"])
def test_a_tenant_name_never_becomes_another_path(registry: Registry, adapters: Any, tenant: str) -> None:
    """Every method refuses a name that is not a tenant's, also that of the registry's own folder."""
    source = adapters.source()
    attempts: list[Callable[[], object]] = [
        lambda: registry.pointer(tenant),
        lambda: registry.releases(tenant),
        lambda: registry.manifest(tenant, "a" * 64),
        lambda: registry.release_folder(tenant, "a" * 64),
        lambda: registry.reserve_engine_id(tenant, source / WEIGHTS),
        lambda: registry.add(source, describer(adapters, source, tenant=tenant)),
        lambda: registry.move_pointer(tenant, Pointer(), weight=1),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigError, match="is not a tenant name"):
            attempt()
    assert not registry.root.exists()


@pytest.mark.parametrize("digest", ["..", "../../etc", "A" * 64, "a" * 63])
def test_a_digest_never_becomes_another_path(registry: Registry, digest: str) -> None:
    """Releases are found by 64 hex digits only."""
    for attempt in (registry.manifest, registry.release_folder):
        with pytest.raises(ReleaseRejected, match="64 lowercase hex digits"):
            attempt("acme", digest)


def test_a_release_of_another_tenant_or_a_damaged_one_is_not_read(registry: Registry, adapters: Any) -> None:
    """manifest() gives only what the digest names, and only to its tenant; the pointer cannot move to others."""
    digest = file_one(registry, adapters)
    shutil.copytree(registry.release_folder("acme", digest), registry.release_folder("bank", digest))
    with pytest.raises(ReleaseRejected, match="belongs to tenant 'acme', not to 'bank'"):
        registry.move_pointer("bank", Pointer(), stable=digest)
    path = registry.release_folder("acme", digest) / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"alpha": 16', b'"alpha": 32'))
    with pytest.raises(ReleaseRejected, match="no longer has the digest"):
        registry.move_pointer("acme", Pointer(), stable=digest)
    with pytest.raises(RegistryError, match="has no release 0000"):
        registry.move_pointer("acme", Pointer(), stable="0" * 64)
    assert registry.pointer("acme") == registry.pointer("bank") == Pointer()


# --- crashes and full disks -------------------------------------------------------------------------------------------
_ADD = """
import os, sys
from pathlib import Path
from nightschool.registry.folder import Registry
from nightschool.registry.release import ReleaseManifest
from dataclasses import replace

source, root, survive = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
manifest = ReleaseManifest.from_bytes(sys.stdin.buffer.read())
real = os.fsync
def fsync(handle):
    global survive
    if survive == 0:
        os._exit(9)
    survive -= 1
    real(handle)
os.fsync = fsync
registry = Registry(root)
digest = registry.add(source, lambda engine_id: replace(manifest, engine_id=engine_id or 1))
registry.move_pointer("acme", registry.pointer("acme"), stable=digest)
"""


def add_in_process(
    registry: Registry, adapters: Any, source: Path, *, survive: int = 10**9
) -> subprocess.CompletedProcess[bytes]:
    """File `source` and point at it, in a process of its own that is killed at its fsync number `survive`."""
    manifest = adapters.manifest(source).to_bytes()
    return subprocess.run(
        [sys.executable, "-c", _ADD, source, registry.root, str(survive)], input=manifest, capture_output=True, check=False
    )


def test_a_crash_at_any_moment_leaves_the_old_release_or_the_new_one(registry: Registry, adapters: Any) -> None:
    """Killed at any durable write: no half release is visible, the pointer is old or new, and a retry finishes."""
    old = file_one(registry, adapters, seed=1)
    registry.move_pointer("acme", Pointer(), stable=old)
    source = adapters.source("new", seed=2)
    for survive in range(100):
        trial = Registry(shutil.copytree(registry.root, registry.root.with_name(f"trial-{survive}")))
        done = add_in_process(trial, adapters, source, survive=survive)
        for digest in trial.releases("acme"):
            folder = trial.release_folder("acme", digest)
            verify_release(folder, tenant="acme", digest=digest, base_model=adapters.base_model, max_rank=8)
        assert trial.pointer("acme").stable in trial.releases("acme")
        if done.returncode == 0:
            break
        assert done.returncode == 9, done.stderr
        assert add_in_process(trial, adapters, source).returncode == 0
        [new] = set(trial.releases("acme")) - {old}
        assert trial.pointer("acme").stable == new
        assert trial.manifest("acme", new).engine_id == 1001  # one for these weights, before and after the crash
        assert not list(trial.root.rglob("*.tmp"))
    # The adapter id, its place and the highest id, each with its folder; three files, manifest, draft, the tenant's folder;
    # the pointer and its folder.
    assert survive == 14


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Every file this process writes ends at `size` bytes, as on a disk that is full (EFBIG in place of ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 40, 100, 300, 1000])
def test_a_disk_that_is_full_leaves_the_registry_as_it_was(registry: Registry, adapters: Any, size: int) -> None:
    """A failed write of the id, of a file or of the manifest is a RegistryError; nothing else has changed."""
    old = file_one(registry, adapters, seed=1)
    pointer = registry.move_pointer("acme", Pointer(), stable=old)
    source = adapters.source("new", seed=2)
    before = snapshot(registry.root)
    with file_size_limit(size), pytest.raises(RegistryError, match="the registry is as it was"):
        registry.add(source, describer(adapters, source))
    assert snapshot(registry.root) == before
    with file_size_limit(20), pytest.raises(RegistryError, match="cannot move the pointer"):
        registry.move_pointer("acme", pointer, frozen=True)
    assert snapshot(registry.root) == before
    new = registry.add(source, describer(adapters, source))
    assert registry.move_pointer("acme", pointer, stable=new).epoch == 2


def test_a_real_full_disk_leaves_the_registry_as_it_was(tmp_path: Path, adapters: Any) -> None:
    """The same on a file system of 128 KiB that is really full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small file system needs rights this process lacks: {mounted.stderr.strip()}")
    try:
        registry = Registry(disk / "registry")
        old = file_one(registry, adapters, seed=1)
        registry.move_pointer("acme", Pointer(), stable=old)
        (disk / "ballast").write_bytes(b"x" * max(0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 8192))
        before = snapshot(registry.root)
        source = adapters.source("new", seed=2)
        (source / "report.html").write_text("x" * 20_000)
        with pytest.raises(RegistryError, match="No space left on device"):
            registry.add(source, describer(adapters, source))
        assert snapshot(registry.root) == before
        (disk / "ballast").unlink()
        assert registry.add(source, describer(adapters, source)) in registry.releases("acme")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_registry_that_cannot_be_written_is_a_registry_error(tmp_path: Path, adapters: Any) -> None:
    """A file in place of the folder is one clear sentence, not a traceback."""
    (tmp_path / "registry").write_text("not a folder")
    registry = Registry(tmp_path / "registry")
    with pytest.raises(RegistryError, match="cannot reserve an adapter id"):
        file_one(registry, adapters)
    with pytest.raises(RegistryError, match="cannot move the pointer"):
        registry.move_pointer("acme", Pointer(), frozen=True)


# --- the pointer ------------------------------------------------------------------------------------------------------
def test_a_pointer_moves_by_compare_and_swap(registry: Registry, adapters: Any) -> None:
    """Each move adds one to the epoch; an outdated expectation is a conflict and changes nothing."""
    digest = file_one(registry, adapters)
    first = registry.move_pointer("acme", Pointer(), stable=digest)
    assert first == Pointer(epoch=1, stable=digest) == registry.pointer("acme")
    second = registry.move_pointer("acme", first, canary=digest, weight=500)
    with pytest.raises(PointerConflict, match="is at epoch 2, expected 1: read it again"):
        registry.move_pointer("acme", first, stable=None)
    assert registry.pointer("acme") == second
    assert registry.pointer("bank") == Pointer()


def test_back_to_the_base_model_is_a_move_too(registry: Registry, adapters: Any) -> None:
    """A pointer to no release means the base model, at a later epoch."""
    first = registry.move_pointer("acme", Pointer(), stable=file_one(registry, adapters))
    assert registry.move_pointer("acme", first, stable=None) == Pointer(epoch=2)


def test_no_move_is_lost_among_threads(registry: Registry) -> None:
    """Eight threads move one pointer ten times each, reading again after every conflict: the epoch counts all 80."""
    conflicts = []

    def move(_: int) -> None:
        moved = 0
        while moved < 10:
            found = registry.pointer("acme")
            try:
                registry.move_pointer("acme", found, frozen=not found.frozen)
                moved += 1
            except PointerConflict as conflict:
                conflicts.append(conflict)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(move, range(8)))
    assert registry.pointer("acme").epoch == 80


_MOVE = """
import sys
from nightschool.errors import PointerConflict
from nightschool.registry.folder import Pointer, Registry
try:
    Registry(sys.argv[1]).move_pointer("acme", Pointer(), weight=int(sys.argv[2]))
    print("moved")
except PointerConflict:
    print("conflict")
"""


def test_one_of_many_processes_wins_a_move(registry: Registry) -> None:
    """Six processes make the same first move: one succeeds, five get a conflict, and the winner's pointer stays."""
    running = [
        subprocess.Popen([sys.executable, "-c", _MOVE, registry.root, str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(6)
    ]
    said = [process.communicate()[0].strip() for process in running]
    assert sorted(said) == ["conflict"] * 5 + ["moved"]
    assert registry.pointer("acme") == Pointer(epoch=1, weight=said.index("moved"))


def test_a_reader_never_sees_half_a_pointer(registry: Registry) -> None:
    """While one thread moves the pointer, every read gives a complete one, and epochs never decrease."""
    stop, seen = threading.Event(), [0]

    def look() -> None:
        while not stop.is_set():
            seen.append(registry.pointer("acme").epoch)

    with ThreadPoolExecutor(1) as readers:
        looking = readers.submit(look)
        pointer = Pointer()
        for _ in range(100):
            pointer = registry.move_pointer("acme", pointer, frozen=not pointer.frozen)
        stop.set()
        looking.result()
    assert seen == sorted(seen)
    assert registry.pointer("acme").epoch == 100


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": 10_001}, "weight is 10001; allowed are 0 to 10000"),
        ({"weight": -1}, "weight is -1"),
        ({"weight": 0.5}, "weight is 0.5"),
        ({"frozen": 1}, "frozen is 1; it must be true or false"),
        ({"stable": "../bank"}, "64 lowercase hex digits"),
        ({"canary": "../bank"}, "64 lowercase hex digits"),
    ],
)
def test_a_move_out_of_bounds_is_refused(registry: Registry, changes: dict[str, Any], said: str) -> None:
    """A weight is 0 to 10,000 basis points, a release a digest; a refused move writes nothing."""
    with pytest.raises((ConfigError, ReleaseRejected), match=said):
        registry.move_pointer("acme", Pointer(), **changes)
    assert registry.pointer("acme") == Pointer()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '"\\ud800"',
        json.dumps(asdict(Pointer()) | {"epoch": "1"}),
        json.dumps(asdict(Pointer()) | {"epoch": -1}),
        json.dumps(asdict(Pointer()) | {"epoch": True}),
        json.dumps(asdict(Pointer()) | {"weight": 20_000}),
        json.dumps(asdict(Pointer()) | {"stable": "../../bank"}),
        json.dumps(asdict(Pointer()) | {"canary": 3}),
        json.dumps(asdict(Pointer()) | {"frozen": "no"}),
    ],
)
def test_a_damaged_pointer_is_an_error_that_names_the_file(registry: Registry, text: str) -> None:
    """For a broken pointer.json the error names the file, why, and what to do; it never means the base model."""
    path = registry.root / "acme" / "pointer.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(RegistryError, match=r"acme/pointer\.json is not a pointer .*; restore it from a backup or delete it"):
        registry.pointer("acme")


# --- adapter ids ------------------------------------------------------------------------------------------------------
def test_an_adapter_id_belongs_to_one_tenants_weights(registry: Registry, adapters: Any) -> None:
    """Other weights, or the same weights of another tenant, get another id; the same weights get theirs again."""
    one, two = (adapters.source(f"s{seed}", seed=seed) / WEIGHTS for seed in (1, 2))
    issued = [registry.reserve_engine_id(tenant, weights) for tenant in ("acme", "bank") for weights in (one, two)]
    assert issued == [1000, 1001, 1002, 1003]
    assert [registry.reserve_engine_id(tenant, weights) for tenant in ("acme", "bank") for weights in (one, two)] == issued
    assert Registry(registry.root).reserve_engine_id("bank", one) == 1002


_RESERVE = """
import sys
from pathlib import Path
from nightschool.registry.folder import Registry
for weights in sys.argv[2:]:
    print(Registry(sys.argv[1]).reserve_engine_id("acme", Path(weights)))
"""


def test_adapter_ids_are_unique_among_processes(registry: Registry, tmp_path: Path) -> None:
    """Five processes reserve ids for the same twelve weights, each in another order, and get the same twelve ids."""
    weights = [tmp_path / f"w{n}" for n in range(12)]
    for n, path in enumerate(weights):
        path.write_bytes(bytes([n]))
    orders = [weights[turn:] + weights[:turn] for turn in range(0, 10, 2)]
    running = [
        subprocess.Popen([sys.executable, "-c", _RESERVE, registry.root, *order], stdout=subprocess.PIPE, text=True)
        for order in orders
    ]
    seen = []
    for process, order in zip(running, orders, strict=True):
        ids = [int(line) for line in process.communicate()[0].split()]
        seen.append(dict(zip(order, ids, strict=True)))
    assert all(ids == seen[0] for ids in seen)
    assert sorted(seen[0].values()) == list(range(1000, 1012))


def test_adapter_ids_are_unique_among_threads(registry: Registry, tmp_path: Path) -> None:
    """The same between threads of one process."""
    weights = [tmp_path / f"w{n}" for n in range(16)]
    for n, path in enumerate(weights):
        path.write_bytes(bytes([n]))
    with ThreadPoolExecutor(8) as threads:
        first, again = (list(threads.map(lambda path: registry.reserve_engine_id("acme", path), weights)) for _ in range(2))
    assert first == again
    assert sorted(first) == list(range(1000, 1016))


def test_adapter_ids_end_at_the_int32_limit(registry: Registry, adapters: Any) -> None:
    """vLLM keeps adapter ids in an int32: past the last one there is an error, not a wrapped id."""
    (registry.root / "engine_ids").mkdir(parents=True)
    (registry.root / "engine_ids" / str(2**31 - 2)).write_text("other\n")
    one, two = (adapters.source(f"s{seed}", seed=seed) / WEIGHTS for seed in (1, 2))
    assert registry.reserve_engine_id("acme", one) == 2**31 - 1
    with pytest.raises(RegistryError, match="adapter ids up to 2147483647 are all taken"):
        registry.reserve_engine_id("acme", two)


_RESERVE_WATCHED = """
import sys
from pathlib import Path
from nightschool.registry.folder import Registry
from nightschool.registry.release import describe_file

registry, weights, seen = Registry(sys.argv[1]), Path(sys.argv[2]), []
sys.addaudithook(lambda event, args: seen.append(event) if event in ("open", "os.listdir", "os.scandir") else None)
print(registry.reserve_engine_id("acme", weights), len(seen), seen.count("os.listdir") + seen.count("os.scandir"))
"""


def test_a_reservation_touches_as_many_files_with_ten_ids_as_with_three_hundred(registry: Registry, tmp_path: Path) -> None:
    """Reserving an id reads and writes a fixed number of files and lists no folder, new weights and known ones alike.

    Measured at 10,000 ids on 2 busy cores: 524 ms a reservation before there was a place to look, 12 ms with it.
    """
    weights = tmp_path / "weights"

    def reserve(content: int) -> tuple[int, int, int]:
        weights.write_bytes(content.to_bytes(4, "big"))
        command = [sys.executable, "-c", _RESERVE_WATCHED, registry.root, weights]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        number, num_opened, num_listed = map(int, done.stdout.split())
        return number, num_opened, num_listed

    def fill(first: int, last: int) -> None:
        for content in range(first, last):
            weights.write_bytes(content.to_bytes(4, "big"))
            registry.reserve_engine_id("acme", weights)

    fill(0, 10)
    few, known_of_few = reserve(10), reserve(10)
    fill(11, 300)
    many, known_of_many = reserve(300), reserve(300)
    assert (few[0], known_of_few[0], many[0], known_of_many[0]) == (1010, 1010, 1300, 1300)
    assert few[1:] == many[1:] and known_of_few[1:] == known_of_many[1:]
    assert many[2] == known_of_many[2] == 0


def test_ids_of_a_registry_without_places_are_found_and_go_on(registry: Registry, tmp_path: Path) -> None:
    """A registry of an older version holds only `<n>` files: known weights keep their id, new ones get the next."""
    weights = tmp_path / "weights"
    issued = []
    for content in range(3):
        weights.write_bytes(bytes([content]))
        issued.append(registry.reserve_engine_id("acme", weights))
    for path in (registry.root / "engine_ids").iterdir():
        if not path.name.isdecimal():
            path.unlink()
    again = []
    for content in (2, 3, 0):
        weights.write_bytes(bytes([content]))
        again.append(registry.reserve_engine_id("acme", weights))
    assert (issued, again) == ([1000, 1001, 1002], [1002, 1003, 1000])


@pytest.mark.parametrize("damage", ["", "many", "1000"])
def test_a_damaged_place_never_gives_an_id_to_other_weights(registry: Registry, tmp_path: Path, damage: str) -> None:
    """What says where to look only helps: where it is wrong, the id is searched for, or a new one is issued."""
    weights = tmp_path / "weights"
    for content in range(3):
        weights.write_bytes(bytes([content]))
        registry.reserve_engine_id("acme", weights)
    holders = {path.name: path.read_text() for path in (registry.root / "engine_ids").glob("[0-9]*")}
    for path in (registry.root / "engine_ids").iterdir():
        if not path.name.isdecimal() and path.name != ".lock":
            path.write_text(damage)
    weights.write_bytes(bytes([9]))
    assert registry.reserve_engine_id("acme", weights) == 1003
    assert {path.name: path.read_text() for path in (registry.root / "engine_ids").glob("100[0-2]")} == holders


def test_two_tenants_with_the_same_weights_have_two_releases(registry: Registry, adapters: Any) -> None:
    """Nothing of a release is shared between tenants, adapter id included."""
    digests = {tenant: file_one(registry, adapters, tenant=tenant) for tenant in ("acme", "bank")}
    assert digests["acme"] != digests["bank"]
    ids = {registry.manifest(tenant, digest).engine_id for tenant, digest in digests.items()}
    assert len(ids) == 2
