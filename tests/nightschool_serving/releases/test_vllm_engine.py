"""Adapters inside the engine: loaded, tried and unloaded. The client is a fake; names and types are vLLM's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nightschool.errors import ReleaseRejected
from nightschool_serving.releases import engine as engine_module
from nightschool_serving.releases.adapter import Adapter
from nightschool_serving.releases.engine import VllmEngine

BANK = Adapter("bank", "a" * 64, 1001, Path("/cache/bank"), content="1")


class FakeClient:
    """Holds adapter ids as AsyncLLM does."""

    def __init__(self, logprob: float = -0.5) -> None:
        self.ids: set[int] = set()
        self.logprob = logprob
        self.error: Exception | None = None
        self.hangs = False
        self.smoked: list[Any] = []

    async def _hang(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()

    async def add_lora(self, request: Any) -> bool:
        if self.error:
            raise self.error
        self.ids.add(request.lora_int_id)
        await self._hang()
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        await self._hang()
        if self.error and lora_id in self.ids:
            raise self.error
        found = lora_id in self.ids
        self.ids.discard(lora_id)
        return found

    async def list_loras(self) -> set[int]:
        return self.ids

    async def generate(self, prompt: Any, params: Any, request_id: str, *, lora_request: Any) -> AsyncIterator[Any]:
        self.smoked.append((lora_request.lora_name, params.max_tokens))
        answer = SimpleNamespace(token_ids=[5], logprobs=[{5: SimpleNamespace(logprob=self.logprob)}])
        yield SimpleNamespace(outputs=[answer])


async def test_a_loaded_adapter_was_tried_before_it_has_a_name() -> None:
    """One token is generated with it; then vLLM's handlers know it by its name, id and local path."""
    client, names = FakeClient(), {}
    engine = VllmEngine(client, names)
    await engine.load(BANK)
    request = names[BANK.name]
    assert client.smoked == [(BANK.name, 1)]
    assert (request.lora_int_id, request.lora_path, request.load_inplace) == (1001, "/cache/bank", False)
    assert (engine.adapter_id(BANK.name), engine.adapter_id("base")) == (1001, None)


async def test_unloading_takes_the_name_and_the_weights() -> None:
    """Neither vLLM's list of names nor the engine keeps it."""
    client, names = FakeClient(), {}
    engine = VllmEngine(client, names)
    await engine.load(BANK)
    await engine.unload(BANK)
    assert (client.ids, names) == (set(), {})


@pytest.mark.parametrize("logprob", [float("nan"), float("inf"), float("-inf")])
async def test_an_adapter_that_overflows_is_rejected(logprob: float) -> None:
    """After a smoke answer without a finite log-probability nothing of it stays in the engine."""
    client, names = FakeClient(logprob), {}
    with pytest.raises(ReleaseRejected, match="overflow"):
        await VllmEngine(client, names).load(BANK)
    assert (client.ids, names) == (set(), {})


async def test_what_the_engine_raises_is_no_verdict_on_the_release() -> None:
    """An engine that is busy or short of memory raises the same types: the release may be tried again, and then loads."""
    client, names = FakeClient(), {}
    client.error = ValueError("out of memory")
    engine = VllmEngine(client, names)
    with pytest.raises(ValueError, match="out of memory"):
        await engine.load(BANK)
    assert names == {}
    client.error = None
    await engine.load(BANK)
    assert list(names) == [BANK.name]


async def test_a_load_that_hangs_is_given_up_and_can_be_tried_again(monkeypatch: Any) -> None:
    """What it left in the engine is taken out before the next attempt, and does not look like another adapter."""
    client, names = FakeClient(), {}
    engine = VllmEngine(client, names)
    monkeypatch.setattr(engine_module, "_ENGINE_SECONDS", 0.01)
    client.hangs = True
    with pytest.raises(TimeoutError, match="max_loras may be too small"):
        await engine.load(BANK)
    assert client.ids == {BANK.id}  # it could not be removed either
    client.hangs = False
    await engine.load(BANK)
    assert (client.ids, list(names)) == ({BANK.id}, [BANK.name])


async def test_an_adapter_that_cannot_be_unloaded_keeps_its_name() -> None:
    """Then unloading can be tried again; its id is not free for other weights meanwhile."""
    client, names = FakeClient(), {}
    engine = VllmEngine(client, names)
    await engine.load(BANK)
    client.error = RuntimeError("busy")
    with pytest.raises(RuntimeError, match="busy"):
        await engine.unload(BANK)
    client.error = None
    with pytest.raises(ReleaseRejected, match="id 1001"):
        await engine.load(replace(BANK, release="b" * 64, content="2"))
    await engine.unload(BANK)
    assert (client.ids, names) == (set(), {})


async def test_an_id_in_use_is_never_given_to_other_weights() -> None:
    """vLLM would silently serve the first adapter under the second one's name."""
    client, names = FakeClient(), {}
    engine = VllmEngine(client, names)
    await engine.load(BANK)
    for other in (
        replace(BANK, release="b" * 64, content="2"),
        replace(BANK, tenant="telecom", release="b" * 64),
    ):
        with pytest.raises(ReleaseRejected, match="id 1001"):
            await engine.load(other)
    assert (client.ids, list(names)) == ({1001}, [BANK.name])
    client.ids.add(7)
    with pytest.raises(ReleaseRejected, match="id 7"):
        await engine.load(replace(BANK, release="c" * 64, id=7))


async def test_a_release_filed_again_with_the_same_weights_shares_them() -> None:
    """The same id under a second name; the weights leave with the last name."""
    client, names = FakeClient(), {}
    engine = VllmEngine(client, names)
    again = replace(BANK, release="b" * 64)
    await engine.load(BANK)
    await engine.load(again)
    await engine.unload(BANK)
    assert (client.ids, list(names)) == ({1001}, [again.name])
    await engine.unload(again)
    assert client.ids == set()


async def test_two_adapters_are_never_loaded_at_once() -> None:
    """Between the check that an id is free and its use, another tenant's task would find it free too."""
    client, names = SlowClient(), {}
    engine = VllmEngine(client, names)
    forged = replace(BANK, tenant="telecom", release="b" * 64)
    done = await asyncio.gather(engine.load(BANK), engine.load(forged), return_exceptions=True)
    assert done[0] is None
    assert isinstance(done[1], ReleaseRejected)
    assert list(names) == [BANK.name]


class SlowClient(FakeClient):
    """Lets other tasks run before each answer."""

    async def list_loras(self) -> set[int]:
        await asyncio.sleep(0)
        return await super().list_loras()

    async def add_lora(self, request: Any) -> bool:
        await asyncio.sleep(0)
        return await super().add_lora(request)
