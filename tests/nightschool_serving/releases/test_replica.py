"""The replica on real registry folders with real, tiny adapters; only the engine is a fake."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nightschool.registry.folder import Pointer
from nightschool.registry.release import ADAPTER_CONFIG, MANIFEST, WEIGHTS, BaseModel
from nightschool_serving.releases.plan import RETIRE_AFTER_SECONDS
from nightschool_serving.releases.routing import ReleaseUnavailable

Publish = Callable[..., str]


def spoil(path: Path) -> None:
    """Flip one bit in the last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


async def test_a_server_is_ready_only_after_it_followed_every_pointer(setup: Any) -> None:
    """Not ready before the first look, ready after it, with the base model where nothing was released."""
    assert not setup.replica.ready
    await setup.replica.reconcile()
    assert setup.replica.ready
    assert setup.release() == "base"


async def test_a_new_release_answers_its_tenant_only(setup: Any, publish_tiny: Publish) -> None:
    """Publishing for one tenant changes nothing for the other."""
    await setup.replica.reconcile()
    digest = publish_tiny("bank", 1)
    await setup.replica.reconcile()
    assert (setup.release("bank"), setup.release("telecom")) == (digest, "base")
    shown = setup.replica.describe("bank")
    assert (shown["release"], shown["epoch"], shown["state"], shown["rejected"]) == (digest, 1, "serving", None)


async def test_the_engine_reads_the_local_copy(setup: Any, publish_tiny: Publish) -> None:
    """The adapter's folder is in the cache, named by content, without leftovers; the registry may go away."""
    digest = publish_tiny("bank", 1)
    await setup.replica.reconcile()
    adapter = setup.table.resolve("bank", "nightschool").adapter
    assert adapter is not None
    assert adapter.folder == setup.cache / "bank" / digest
    assert [path.name for path in (setup.cache / "bank").iterdir()] == [digest]
    shutil.rmtree(setup.registry.root)
    assert (adapter.folder / WEIGHTS).is_file()


async def test_looking_again_loads_nothing_again(setup: Any, publish_tiny: Publish) -> None:
    """An unchanged pointer costs one read."""
    publish_tiny("bank", 1)
    for _ in range(3):
        await setup.replica.reconcile()
    assert setup.engine.loads == 1


def remove_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def flip_byte(folder: Path) -> None:
    spoil(folder / WEIGHTS)


def spoil_manifest(folder: Path) -> None:
    spoil(folder / MANIFEST)


def add_pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"pickle")


def link_weights(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


def pipe_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


DAMAGES = (flip_byte, spoil_manifest, remove_weights, add_pickle, link_weights, pipe_weights)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_release_is_rejected_and_the_old_one_serves(
    setup: Any, publish_tiny: Publish, damage: Callable[[Path], None]
) -> None:
    """A flipped byte, a missing file, a pickle, a link or a pipe never reaches the engine and is not tried again."""
    good = publish_tiny("bank", 1)
    await setup.replica.reconcile()
    bad = publish_tiny("bank", 2)
    damage(setup.registry.release_folder("bank", bad))
    for _ in range(2):
        await setup.replica.reconcile()
    assert setup.release() == good
    assert setup.engine.loaded == [good]
    shown = setup.replica.describe("bank")
    assert (shown["rejections"], shown["rejected"]["release"], shown["state"]) == (1, bad, "serving")
    assert not (setup.cache / "bank" / bad).exists()


async def test_a_rejected_release_is_tried_again_when_the_pointer_moves(setup: Any, publish_tiny: Publish) -> None:
    """Repairing the files changes nothing before a person moves the pointer."""
    bad = publish_tiny("bank", 1)
    weights = setup.registry.release_folder("bank", bad) / WEIGHTS
    spoil(weights)
    await setup.replica.reconcile()
    spoil(weights)
    await setup.replica.reconcile()
    with pytest.raises(ReleaseUnavailable):
        setup.release()
    setup.point("bank", bad)
    await setup.replica.reconcile()
    assert setup.release() == bad
    assert setup.replica.describe("bank")["rejected"] is None


async def test_another_tenants_release_is_rejected(setup: Any, publish_tiny: Publish) -> None:
    """A release filed under the wrong tenant, manifest and all, is never loaded."""
    theirs = publish_tiny("telecom", 1)
    shutil.copytree(setup.registry.release_folder("telecom", theirs), setup.registry.release_folder("bank", theirs))
    # The registry itself refuses to point there; somebody with write access to the folder would not ask it.
    shutil.copy(setup.registry.root / "telecom" / "pointer.json", setup.registry.root / "bank")
    await setup.replica.reconcile()
    assert setup.engine.loaded == [theirs]  # as telecom's
    with pytest.raises(ReleaseUnavailable, match="belongs to tenant 'telecom'"):
        setup.release("bank")


async def test_a_release_for_another_base_model_is_rejected(
    setup: Any, publish_tiny: Publish, tiny_base_model: BaseModel
) -> None:
    """Weights, tokenizer and chat template must be this server's."""
    for number, part in enumerate(("weights", "tokenizer", "chat_template")):
        publish_tiny("bank", number, base_model=replace(tiny_base_model, **{part: "9" * 64}))
        await setup.replica.reconcile()
        assert f"another base model: {part}" in setup.replica.describe("bank")["rejected"]["reason"]


async def test_a_release_for_another_dtype_is_rejected_and_the_old_one_serves(setup: Any, publish_tiny: Publish) -> None:
    """The gate measured it beside a base model in another type; both are named, and what to set."""
    good = publish_tiny("bank", 1)
    await setup.replica.reconcile()
    publish_tiny("bank", 2, dtype="bfloat16")
    await setup.replica.reconcile()
    assert setup.release() == good
    assert setup.engine.loaded == [good]
    assert "in bfloat16, this server has it in float32; set" in setup.replica.describe("bank")["rejected"]["reason"]


async def test_a_release_of_too_high_a_rank_is_rejected(setup: Any, publish_tiny: Publish) -> None:
    """vLLM's buffers have the size the server was started with."""
    publish_tiny("bank", 1, rank=32)
    await setup.replica.reconcile()
    assert "above the 16" in setup.replica.describe("bank")["rejected"]["reason"]


async def test_a_release_the_engine_refuses_does_not_answer(setup: Any, publish_tiny: Publish) -> None:
    """A failed load or smoke request keeps the old release; the reason is shown."""
    good = publish_tiny("bank", 1)
    await setup.replica.reconcile()
    setup.engine.refuse = "the weights overflow"
    publish_tiny("bank", 2)
    await setup.replica.reconcile()
    assert setup.release() == good
    assert setup.replica.describe("bank")["rejected"]["reason"].startswith("the weights overflow (error ")


async def test_the_base_model_does_not_stand_in_for_a_rejected_first_release(setup: Any, publish_tiny: Publish) -> None:
    """Without an earlier release the tenant's requests are refused with the reason; the other tenant is served."""
    spoil(setup.registry.release_folder("bank", publish_tiny("bank", 1)) / WEIGHTS)
    await setup.replica.reconcile()
    assert setup.replica.ready
    with pytest.raises(ReleaseUnavailable, match="SHA-256"):
        setup.release("bank")
    assert setup.replica.describe("bank")["state"] == "unavailable"
    assert setup.release("telecom") == "base"


@pytest.mark.parametrize("gone", ["whole registry", "mount point without its mount", "pointer unreadable"])
async def test_an_unreachable_registry_changes_nothing(setup: Any, publish_tiny: Publish, gone: str) -> None:
    """The loaded release keeps answering while the registry is away, and a new one is followed when it is back."""
    digest = publish_tiny("bank", 1)
    await setup.replica.reconcile()
    away = setup.registry.root.with_name("away")
    pointer = setup.registry.root / "bank" / "pointer.json"
    good = pointer.read_text()
    if gone != "pointer unreadable":
        setup.registry.root.rename(away)
        if gone == "mount point without its mount":
            setup.registry.root.mkdir()
    else:
        pointer.write_text("{")
    await setup.replica.reconcile()
    assert setup.release() == digest
    assert setup.replica.describe("bank")["registry"] != "reachable"
    if gone != "pointer unreadable":
        away.rename(setup.registry.root)
    else:
        pointer.write_text(good)
    newer = publish_tiny("bank", 2)
    await setup.replica.reconcile()
    assert setup.release() == newer
    assert setup.replica.describe("bank")["registry"] == "reachable"


async def test_a_rollback_needs_no_loading(setup: Any, publish_tiny: Publish) -> None:
    """The release before the current one is still in the engine."""
    first, second = publish_tiny("bank", 1), publish_tiny("bank", 2)
    for digest in (first, second):
        setup.point("bank", digest)
        await setup.settle()
    assert sorted(setup.engine.loaded) == sorted([first, second])
    assert setup.replica.describe("bank")["previous"] == first
    setup.point("bank", first)
    await setup.replica.reconcile()
    assert setup.release() == first
    assert setup.engine.loads == 2


async def test_a_rollback_to_the_base_model(setup: Any, publish_tiny: Publish) -> None:
    """A pointer to nothing is the base model."""
    publish_tiny("bank", 1)
    await setup.replica.reconcile()
    setup.point("bank", None)
    await setup.replica.reconcile()
    assert setup.release() == "base"


async def test_an_adapter_leaves_the_engine_only_when_idle_for_a_while(setup: Any, publish_tiny: Publish) -> None:
    """Two versions back it stays while a request runs on it and for a while after; then it is deleted."""
    first = publish_tiny("bank", 1)
    await setup.replica.reconcile()
    target = setup.table.resolve("bank", "nightschool")
    with setup.table.lease(target):
        for seed in (2, 3):
            publish_tiny("bank", seed)
            await setup.settle()
        assert first in setup.engine.loaded
    await setup.replica.reconcile()
    setup.now[0] += RETIRE_AFTER_SECONDS - 1
    await setup.replica.reconcile()
    assert first in setup.engine.loaded
    setup.now[0] += 1
    await setup.replica.reconcile()
    assert first not in setup.engine.loaded
    assert len(setup.engine.loaded) == 2
    assert first not in {path.name for path in (setup.cache / "bank").iterdir()}


async def test_a_spoiled_local_copy_is_fetched_again(setup: Any, publish_tiny: Publish) -> None:
    """After a restart the cached files are verified again before they are used."""
    digest = publish_tiny("bank", 1)
    await setup.replica.reconcile()
    spoil(setup.cache / "bank" / digest / ADAPTER_CONFIG)
    restarted = setup.restarted()
    await restarted.replica.reconcile()
    assert restarted.release() == digest
    assert (setup.cache / "bank" / digest / ADAPTER_CONFIG).read_bytes() == (
        setup.registry.release_folder("bank", digest) / ADAPTER_CONFIG
    ).read_bytes()


async def test_a_tenant_whose_release_takes_long_delays_no_other(setup: Any, publish_tiny: Publish) -> None:
    """Each tenant is followed in a task of its own: the others get their new releases meanwhile."""
    await setup.replica.reconcile()
    setup.engine.stuck["bank"] = asyncio.Event()
    watching = asyncio.create_task(setup.replica.watch(0.01))
    mine = publish_tiny("bank", 1)
    for seed in (1, 2):
        await setup.until_released(telecom=publish_tiny("telecom", seed))
    assert setup.release("bank") == "base"
    setup.engine.stuck["bank"].set()
    await setup.until_released(bank=mine)
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_defect_at_one_tenant_does_not_stop_the_watch(setup: Any, publish_tiny: Publish) -> None:
    """An unexpected error is logged and that tenant is tried again; the others are not affected."""
    await setup.replica.reconcile()
    pointer, failures = setup.registry.pointer, [0]

    def broken(tenant: str) -> Pointer:
        if tenant == "bank" and not failures[0]:
            failures[0] += 1
            raise ZeroDivisionError
        return pointer(tenant)

    mine, theirs = publish_tiny("bank", 1), publish_tiny("telecom", 1)
    setup.registry.pointer = broken  # type: ignore[method-assign]
    watching = asyncio.create_task(setup.replica.watch(0.01))
    await setup.until_released(bank=mine, telecom=theirs)
    assert failures == [1]
    watching.cancel()
    await asyncio.wait([watching])
