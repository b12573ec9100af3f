"""Lets the rollouts of one prompt share the keys and values of its last, partly filled block.

vLLM's prefix cache holds whole blocks only (32 tokens on a CPU). So each of a group's n rollouts computes again what
its prompt has beyond the last whole block: 16 tokens on average, which for answers of a few tokens is most of the
sampling's arithmetic. This connector, on vLLM's public KV connector interface, copies that block once a prompt has
been computed. Each later request for the same prompt gets the copy and computes one token. Only requests of later
engine steps can be served: sample one token for each prompt first, then the group.

It shares by prompt and adapter, not by what the adapter holds: call `reset_prefix_cache(reset_connector=True)` whenever
the weights behind an adapter's id change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, KVConnectorRole

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

PromptIds = tuple[int, ...]
Tail = tuple[int, PromptIds]
"""Whose keys and values a tail holds: the id of the adapter, 0 for the base model, and the prompt."""


@dataclass
class TailCopies(KVConnectorMetadata):  # type: ignore[misc]  # vLLM has no type information
    """What the worker copies in one engine step; a block is named by its index in the KV cache."""

    forget_all: bool
    """Drop every kept tail first."""
    load: list[tuple[Tail, int]] = field(default_factory=list)
    save: list[tuple[Tail, int]] = field(default_factory=list)


class PromptTailConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """One instance decides (in vLLM's scheduler), another copies (in its worker); each uses its half of the fields."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block_size: int = vllm_config.cache_config.block_size
        # Of the scheduler: the tails that the worker keeps, and the blocks to load into at the next step, by request.
        self._saved: set[Tail] = set()
        self._loads: dict[str, tuple[Tail, int]] = {}
        self._forget_all = False
        # Of the worker: the KV cache of each layer, and each kept tail, a block for each layer.
        self._kv_caches: list[torch.Tensor] = []
        self._tails: dict[Tail, list[torch.Tensor]] = {}

    # --- scheduler ------------------------------------------------------------------------------------------------------
    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """How many tokens of the tail need not be computed. The last token always is: its logits predict the answer."""
        tail = _, prompt = _tail_of(request)
        tail_starts = (len(prompt) - 1) // self._block_size * self._block_size
        if tail not in self._saved or num_computed_tokens != tail_starts or request.num_tokens != len(prompt):
            return 0, False
        return len(prompt) - 1 - tail_starts, False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Note the block that the tail is to be copied into."""
        if num_external_tokens:
            tail = _tail_of(request)
            self._loads[request.request_id] = (tail, self._tail_block(tail, blocks.get_block_ids()[0]))

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """What the worker copies in this step: the noted loads, and the tail of each newly computed prompt."""
        copies = TailCopies(self._forget_all, load=list(self._loads.values()))
        for new in scheduler_output.scheduled_new_reqs:
            tail = _, prompt = _tail_of(new)
            whole = new.num_computed_tokens + scheduler_output.num_scheduled_tokens[new.req_id] == len(prompt)
            if whole and tail not in self._saved and (len(prompt) - 1) % self._block_size:
                self._saved.add(tail)
                copies.save.append((tail, self._tail_block(tail, new.block_ids[0])))
        self._loads = {}
        self._forget_all = False
        return copies

    def reset_cache(self) -> bool:
        """Forget every tail, here at once and in the worker before its next step."""
        self._saved.clear()
        self._forget_all = True
        return True

    def _tail_block(self, tail: Tail, block_ids: Any) -> int:
        return int(block_ids[(len(tail[1]) - 1) // self._block_size])

    # --- worker ---------------------------------------------------------------------------------------------------------
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Keep the KV cache of each layer, a tensor with the block as its first dimension."""
        self._kv_caches = list(kv_caches.values())

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Before the step: copy kept tails into the blocks of new requests."""
        copies = self._get_connector_metadata()
        assert isinstance(copies, TailCopies)
        if copies.forget_all:
            self._tails.clear()
        for tail, block in copies.load:
            for cache, kept in zip(self._kv_caches, self._tails[tail], strict=True):
                cache[block].copy_(kept)

    def wait_for_save(self) -> None:
        """After the step: keep a copy of the tails that were computed in it."""
        copies = self._get_connector_metadata()
        assert isinstance(copies, TailCopies)
        for tail, block in copies.save:
            self._tails[tail] = [cache[block].clone() for cache in self._kv_caches]

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Everything was copied before the step."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Everything is copied after the step."""


def _tail_of(request: Any) -> Tail:
    """The tail of a request, which is one of two classes of vLLM's."""
    adapter = request.lora_request
    return (adapter.lora_int_id if adapter else 0, tuple(request.prompt_token_ids or ()))
