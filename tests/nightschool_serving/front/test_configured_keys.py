"""The keys of a running server follow nightschool.toml."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from nightschool.keys import hash_key
from nightschool_serving.front.configured_keys import follow_keys


def write(path: Path, *keys: str) -> None:
    path.write_text(f"[tenants.bank]\nkey_sha256 = {[hash_key(key) for key in keys]}\n")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what changes is in a thread
        await asyncio.sleep(0.01)


async def test_a_changed_file_changes_who_is_let_in(tmp_path: Path) -> None:
    """A new key opens its tenant by itself; after SIGHUP, which would end the process, a removed one opens nothing."""
    path = tmp_path / "nightschool.toml"
    write(path, "old")
    keys = follow_keys(path)
    assert keys.tenant_of("Bearer old") == "bank"
    async with asyncio.timeout(30):
        write(path, "old", "new")
        await until(lambda: keys.tenant_of("Bearer new") == "bank")
        write(path, "new")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: keys.tenant_of("Bearer old") is None)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
