"""Adapters inside the running vLLM engine: load, try, unload. The only file that calls the engine's LoRA methods.

vLLM's own route for unloading forgets the name and keeps the weights, and its reload swaps weights under running
requests. Here an adapter has one id and one path as long as it exists, and unloading takes it out of both the engine
and the list of names.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

from nightschool.errors import ReleaseRejected
from nightschool_serving.releases.adapter import Adapter

_SMOKE_PROMPT = [1]  # one token that every vocabulary has
_ENGINE_SECONDS = 120.0  # for one call; beside a full batch of long prompts on a CPU a step may take many seconds


T = TypeVar("T")


class AdapterEngine(Protocol):
    """What the replica needs of an engine."""

    async def load(self, adapter: Adapter) -> None:
        """Load and try the adapter; `ReleaseRejected` if its answer is not finite or its id belongs to other weights.

        Any other error may pass: the same adapter may be tried again.
        """
        ...

    async def unload(self, adapter: Adapter) -> None:
        """Take the adapter out of the engine."""
        ...


class VllmEngine:
    """The engine of this vLLM server."""

    def __init__(self, client: Any, lora_requests: dict[str, Any]) -> None:
        self._client = client
        self._lora_requests = lora_requests
        """`state.openai_serving_models.lora_requests`: the names that vLLM's handlers accept."""
        self._holders: dict[int, dict[str, Adapter]] = {}
        """Adapters by id, then name. A release filed again with the same weights has the same id."""
        self._changing = asyncio.Lock()
        """One adapter at a time: between the check that an id is free and its use, no other adapter may take it."""
        self._begun: dict[int, Adapter] = {}
        """Loads that failed or were given up, by id: parts of them may be in the engine, under no name."""

    async def load(self, adapter: Adapter) -> None:
        async with self._changing:
            await self._load(adapter)

    async def unload(self, adapter: Adapter) -> None:
        async with self._changing:
            holders = self._holders.get(adapter.id, {})
            if set(holders) <= {adapter.name}:
                await _within(self._client.remove_lora(adapter.id))
                self._holders.pop(adapter.id, None)
            else:
                del holders[adapter.name]
            self._lora_requests.pop(adapter.name, None)

    def adapter_id(self, name: str) -> int | None:
        """The id that vLLM's handlers will use for `name`; None for the base model."""
        request = self._lora_requests.get(name)
        return None if request is None else int(request.lora_int_id)

    async def _load(self, adapter: Adapter) -> None:
        from vllm.lora.request import LoRARequest

        request = LoRARequest(lora_name=adapter.name, lora_int_id=adapter.id, lora_path=str(adapter.folder))
        await self._check_id(adapter)
        is_first = not self._holders.get(adapter.id)
        if is_first:
            self._begun[adapter.id] = adapter
        try:
            await _within(self._client.add_lora(request))
            await _within(self._smoke(request))
        except Exception:
            # vLLM raises the same types for an adapter that it cannot read and for an engine that is busy or short of
            # memory. The release has passed every check of its content, so this is no verdict on it.
            if is_first:
                await _within(self._client.remove_lora(adapter.id))
                del self._begun[adapter.id]
            raise
        self._begun.pop(adapter.id, None)
        self._holders.setdefault(adapter.id, {})[adapter.name] = adapter
        self._lora_requests[adapter.name] = request

    async def _check_id(self, adapter: Adapter) -> None:
        """vLLM takes a known id for loaded, and would serve whatever has that id under this adapter's name."""
        if adapter.id in self._begun:
            await _within(self._client.remove_lora(adapter.id))
            del self._begun[adapter.id]
        holders = self._holders.get(adapter.id, {})
        foreign = not holders and adapter.id in await _within(self._client.list_loras())
        if foreign or any((held.tenant, held.content) != (adapter.tenant, adapter.content) for held in holders.values()):
            raise ReleaseRejected(f"adapter id {adapter.id} is already used in this engine by another adapter")

    async def _smoke(self, request: Any) -> None:
        """Generate one token with the adapter: weights that overflow show here, before a user sees their answers."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=0, detokenize=False)
        last = None
        async for output in self._client.generate(
            {"prompt_token_ids": _SMOKE_PROMPT}, params, f"smoke-{secrets.token_hex(8)}", lora_request=request
        ):
            last = output
        answer = last.outputs[0] if last and last.outputs else None
        if answer is None or not answer.token_ids or not answer.logprobs:
            raise RuntimeError("the smoke request got no token")
        logprob = answer.logprobs[0][answer.token_ids[0]].logprob
        if not math.isfinite(logprob):
            raise ReleaseRejected(f"the smoke request's token has log-probability {logprob}: the weights overflow")


async def _within(call: Awaitable[T]) -> T:
    """A call to the engine; `TimeoutError` instead of waiting for ever for one that hangs."""
    try:
        return await asyncio.wait_for(call, _ENGINE_SECONDS)
    except TimeoutError:
        # A new adapter cannot be tried while those of other requests take every slot.
        message = f"the engine has not answered within {_ENGINE_SECONDS:g} s; [serving] max_loras may be too small"
        raise TimeoutError(message) from None
