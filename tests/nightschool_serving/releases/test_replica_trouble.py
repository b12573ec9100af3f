"""What goes wrong for one tenant, or passes again: the replica on real folders, with a fake engine."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nightschool.registry.folder import Pointer
from nightschool.registry.release import WEIGHTS
from nightschool_serving.releases import follower
from nightschool_serving.releases.plan import RETIRE_AFTER_SECONDS
from nightschool_serving.releases.replica import READY_WITHIN_SECONDS
from nightschool_serving.releases.routing import ReleaseUnavailable

Publish = Callable[..., str]


def spoil(setup: Any, release: str) -> None:
    (setup.registry.release_folder("bank", release) / WEIGHTS).write_bytes(b"damaged")


@pytest.mark.parametrize("found", ["nothing", "an empty folder"])
async def test_a_registry_that_is_not_mounted_is_not_an_empty_one(setup: Any, publish_tiny: Publish, found: str) -> None:
    """The base model does not answer in place of releases that cannot be seen; once the registry is there, they do."""
    digest = publish_tiny("bank", 1)
    away = setup.registry.root.with_name("away")
    setup.registry.root.rename(away)
    if found == "an empty folder":
        setup.registry.root.mkdir()
    await setup.replica.reconcile()
    assert setup.replica.ready
    for tenant in ("bank", "telecom"):
        with pytest.raises(ReleaseUnavailable, match="model 'base' still answers"):
            setup.release(tenant)
    assert setup.table.resolve("bank", "base").adapter is None
    shutil.rmtree(setup.registry.root, ignore_errors=True)
    away.rename(setup.registry.root)
    await setup.replica.reconcile()
    assert (setup.release("bank"), setup.release("telecom")) == (digest, "base")


def half_written(path: Path) -> None:
    path.write_text("{")


def nested(path: Path) -> None:
    path.write_text("[" * 30_000)


def endless(path: Path) -> None:
    with path.open("w") as file:
        file.truncate(1 << 40)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [half_written, nested, endless, a_pipe, a_folder])
async def test_a_damaged_pointer_is_trouble_of_its_tenant_only(
    setup: Any, publish_tiny: Publish, damage: Callable[[Path], None]
) -> None:
    """After a restart the others are served and the server is ready; its own tenant is told, and served when it is repaired."""
    mine, theirs = publish_tiny("bank", 1), publish_tiny("telecom", 1)
    pointer = setup.registry.root / "bank" / "pointer.json"
    good = pointer.read_text()
    damage(pointer)
    await setup.replica.reconcile()
    assert setup.replica.ready
    assert setup.release("telecom") == theirs
    with pytest.raises(ReleaseUnavailable, match="pointer in it, cannot be read"):
        setup.release("bank")
    shutil.rmtree(pointer) if pointer.is_dir() else pointer.unlink()
    pointer.write_text(good)
    await setup.replica.reconcile()
    assert setup.release("bank") == mine


async def test_what_a_tenant_is_told_names_no_folder(setup: Any, publish_tiny: Publish, caplog: Any) -> None:
    """It gets the reason and an id; the operator finds the id, with the path, in the log."""
    publish_tiny("bank", 1)
    half_written(setup.registry.root / "bank" / "pointer.json")
    for _ in range(3):
        await setup.replica.reconcile()
    with pytest.raises(ReleaseUnavailable) as raised:
        setup.release("bank")
    told = str(raised.value) + str(setup.replica.describe("bank"))
    assert str(setup.registry.root) not in told
    number = told.partition("(error ")[2][:8]
    (line,) = [record.getMessage() for record in caplog.records if number in record.getMessage()]
    assert str(setup.registry.root / "bank" / "pointer.json") in line


async def test_a_folder_that_hangs_holds_up_only_its_tenant(setup: Any, publish_tiny: Publish, monkeypatch: Any) -> None:
    """Others get their releases meanwhile; the server is ready after a bounded time, and says who is pending."""
    pointer, gone = setup.registry.pointer, threading.Event()

    def hanging(tenant: str) -> Pointer:
        if tenant == "bank":
            gone.wait()
        return pointer(tenant)

    monkeypatch.setattr(setup.registry, "pointer", hanging)
    watching = asyncio.create_task(setup.replica.watch(0.01))
    mine = publish_tiny("bank", 1, pointed=False)
    for seed in (1, 2):
        theirs = publish_tiny("telecom", seed, pointed=False)
        setup.registry.move_pointer("telecom", pointer("telecom"), stable=theirs)
        await setup.until_released(telecom=theirs)
    assert not setup.replica.ready
    with pytest.raises(ReleaseUnavailable, match="not been read yet"):
        setup.release("bank")
    setup.now[0] += READY_WITHIN_SECONDS
    assert setup.replica.ready
    gone.set()
    setup.registry.move_pointer("bank", pointer("bank"), stable=mine)
    await setup.until_released(bank=mine)
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_call_that_hangs_is_given_up(setup: Any, monkeypatch: Any) -> None:
    """The tenant is decided (unavailable, and why) and the next look does not begin a second thread that hangs."""
    calls, gone = [0], threading.Event()

    def hanging() -> None:
        calls[0] += 1
        gone.wait()

    monkeypatch.setattr(setup.registry, "check_present", hanging)
    monkeypatch.setattr(follower, "POINTER_SECONDS", 0.05)
    for _ in range(2):
        await setup.replica.reconcile()
    assert setup.replica.ready
    with pytest.raises(ReleaseUnavailable, match="no answer in time"):
        setup.release("bank")
    assert calls == [2]  # one for each tenant
    gone.set()


async def test_an_engine_that_fails_is_no_verdict_on_the_release(setup: Any, publish_tiny: Publish) -> None:
    """It is tried again, later each time, and answers as soon as the engine takes it."""
    digest = publish_tiny("bank", 1)
    setup.engine.error = RuntimeError("no memory left at /secret/path")
    for loads in (1, 1, 2):
        await setup.replica.reconcile()
        assert setup.engine.loads == loads
        setup.now[0] += 1.5
    shown = setup.replica.describe("bank")
    assert (shown["rejected"], shown["delayed"]["attempts"], shown["delayed"]["release"]) == (None, 2, digest)
    assert "/secret" not in str(shown)
    setup.engine.error = None
    setup.now[0] += 10
    await setup.replica.reconcile()
    assert setup.release() == digest
    assert setup.replica.describe("bank")["delayed"] is None


async def test_a_moved_pointer_does_not_wait_for_the_delay_of_another_release(setup: Any, publish_tiny: Publish) -> None:
    """The pause belongs to the release that failed."""
    publish_tiny("bank", 1)
    setup.engine.error = RuntimeError("busy")
    await setup.replica.reconcile()
    setup.engine.error = None
    newer = publish_tiny("bank", 2)
    await setup.replica.reconcile()
    assert setup.release() == newer


async def test_after_a_restart_the_parent_answers_for_a_rejected_release(setup: Any, publish_tiny: Publish) -> None:
    """The nearest parent that can be loaded; the tenant can see that it is not the release of the pointer."""
    first = publish_tiny("bank", 1)
    second = publish_tiny("bank", 2, parent=first)
    third = publish_tiny("bank", 3, parent=second)
    for damaged in (second, third):
        spoil(setup, damaged)
    await setup.replica.reconcile()
    assert setup.release() == first
    shown = setup.replica.describe("bank")
    assert (shown["release"], shown["fallback_for"], shown["rejected"]["release"]) == (first, third, third)
    assert (shown["state"], shown["rejections"]) == ("serving", 1)
    newer = publish_tiny("bank", 4, parent=third)
    await setup.replica.reconcile()
    assert (setup.release(), setup.replica.describe("bank")["fallback_for"]) == (newer, None)


async def test_a_rejected_release_without_a_parent_leaves_the_tenant_unavailable(setup: Any, publish_tiny: Publish) -> None:
    """The base model is nobody's parent: it does not stand in by itself."""
    spoil(setup, publish_tiny("bank", 1, parent=None))
    await setup.replica.reconcile()
    with pytest.raises(ReleaseUnavailable, match="is refused"):
        setup.release()


async def test_the_parent_answers_while_the_engine_keeps_failing(setup: Any, publish_tiny: Publish) -> None:
    """After three attempts the parent is tried; the release itself is tried on, and takes over."""
    first = publish_tiny("bank", 1)
    second = publish_tiny("bank", 2, parent=first)
    load = setup.engine.load

    async def picky(adapter: Any) -> None:
        if adapter.release == second:
            raise RuntimeError("not this one")
        await load(adapter)

    setup.engine.load = picky
    for _ in range(3):
        await setup.replica.reconcile()
        setup.now[0] += 10
    assert (setup.release(), setup.replica.describe("bank")["fallback_for"]) == (first, second)
    setup.engine.load = load
    setup.now[0] += 10
    await setup.replica.reconcile()
    assert (setup.release(), setup.replica.describe("bank")["fallback_for"]) == (second, None)


async def test_a_full_disk_is_said_and_not_written_to_at_each_look(setup: Any, publish_tiny: Publish, monkeypatch: Any) -> None:
    """The registry is reachable, the disk is the reason, and copying is tried again after a pause."""
    digest = publish_tiny("bank", 1)
    copies, copyfile = [0], shutil.copyfile

    def full(*_: Any, **__: Any) -> None:
        copies[0] += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(setup.cache))

    monkeypatch.setattr(shutil, "copyfile", full)
    for _ in range(5):
        await setup.replica.reconcile()
    shown = setup.replica.describe("bank")
    assert (copies, shown["registry"]) == ([1], "reachable")
    assert "the disk of this server is full" in shown["reason"]
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    setup.now[0] += 2
    await setup.replica.reconcile()
    assert setup.release() == digest


async def test_an_adapter_is_forgotten_only_after_it_left_the_engine(setup: Any, publish_tiny: Publish) -> None:
    """If unloading fails it is tried again: no weights stay in the engine that nobody knows of."""
    first, second, third = (publish_tiny("bank", seed, pointed=False) for seed in (1, 2, 3))
    for digest in (first, second, third):
        setup.point("bank", digest)
        await setup.replica.reconcile()
    setup.engine.error = RuntimeError("busy")
    setup.now[0] += RETIRE_AFTER_SECONDS
    await setup.replica.reconcile()
    assert first in setup.engine.loaded
    assert (setup.cache / "bank" / first).is_dir()
    setup.engine.error = None
    await setup.replica.reconcile()
    assert sorted(setup.engine.loaded) == sorted([second, third])
    assert not (setup.cache / "bank" / first).exists()
