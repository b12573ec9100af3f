"""The vLLM endpoint plugin: wires routes, replica, recorder and telemetry into vLLM's server.

When a plugin cannot be loaded, vLLM logs the error and starts without it; the guard then finds no `Serving` in the
app's state and answers 503. An error in the methods below stops the start.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from nightschool.config.reader import load_config
from nightschool.config.settings import Config
from nightschool.errors import ConfigError
from nightschool.registry.base_model import cache_folder, describe_base_model
from nightschool.registry.folder import Registry
from nightschool_serving.cpu_lora import GROUPED_WRAPPER, PROBE_METHOD
from nightschool_serving.draining import drain_before_shutdown
from nightschool_serving.front.configured_keys import CONFIG_VARIABLE
from nightschool_serving.releases.adapter_cache import AdapterCache
from nightschool_serving.releases.engine import VllmEngine
from nightschool_serving.releases.replica import Replica
from nightschool_serving.releases.routing import RoutingTable
from nightschool_serving.state import Serving
from nightschool_serving.telemetry.recorder import RecordingEngine
from nightschool_serving.telemetry.sender import Telemetry

_logger = logging.getLogger(__name__)


class NightschoolEndpoint:
    """Implements vLLM's EndpointPlugin protocol."""

    name = "nightschool"
    # Without this, vLLM's render server, which has no engine, would load the plugin too.
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        from nightschool_serving.routes import router

        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        await check_lora_operations(engine_client)
        config = load_config(os.environ[CONFIG_VARIABLE])
        serving = await build_serving(config, engine_client, state, args)
        for handler in (state.openai_serving_chat, state.openai_serving_completion):
            handler.engine_client = RecordingEngine(engine_client)
        # HTTP answers meanwhile: tenants that are loaded are served, and the others are told what they wait for.
        serving.tasks = (
            asyncio.create_task(serving.replica.watch(config.serving.poll_seconds)),
            asyncio.create_task(prune_when_ready(serving)),
        )
        drain_before_shutdown(engine_client, serving)
        state.nightschool_serving = serving


async def prune_when_ready(serving: Serving) -> None:
    """Delete releases of earlier runs, once those that are needed now are held."""
    while not serving.ready:  # noqa: ASYNC110 - seconds, once
        await asyncio.sleep(1.0)
    try:
        await asyncio.to_thread(serving.cache.prune)
    except OSError as error:
        _logger.warning("releases of earlier runs could not be deleted: %s", error)


def create_endpoint() -> NightschoolEndpoint:
    """The factory named in the entry point `vllm.endpoint_plugins`."""
    return NightschoolEndpoint()


async def build_serving(config: Config, engine_client: Any, state: Any, args: Namespace) -> Serving:
    """Everything this server needs; it does not follow the registry yet."""
    base_model = await asyncio.to_thread(describe_base_model, Path(args.model))
    registry = Registry(config.registry.path)
    cache = AdapterCache(
        cache_folder() / "adapters",
        registry,
        base_model=base_model,
        # The engine's own type and not the configured one: it is what a release is computed beside.
        dtype=str(engine_client.model_config.dtype).removeprefix("torch."),
        max_rank=config.serving.max_lora_rank,
    )
    table = RoutingTable(config.tenants)
    engine = VllmEngine(engine_client, state.openai_serving_models.lora_requests)
    replica = Replica(config.tenants, registry=registry, cache=cache, engine=engine, table=table)
    telemetry = Telemetry(config.serving.collector) if config.serving.collector else None
    if telemetry:
        atexit.register(telemetry.close)
    max_model_len = engine_client.model_config.max_model_len
    return Serving(
        table,
        replica,
        cache,
        engine,
        telemetry,
        max_model_len=max_model_len,
        default_max_tokens=config.serving.default_max_tokens,
        tokenizer=base_model.tokenizer,
    )


async def check_lora_operations(engine_client: Any) -> None:
    """Refuse to serve on CPUs with vLLM's own LoRA operations: they mix tenants' weights within a batch."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for wrappers in await engine_client.collective_rpc(PROBE_METHOD):
        if wrappers != [GROUPED_WRAPPER]:
            raise ConfigError(
                f"a vLLM worker computes LoRA with {wrappers}, which leaks adapters into other requests on CPUs; allowed is "
                f"{GROUPED_WRAPPER}: start with 'nightschool serve', which lists nightschool_cpu_lora in VLLM_PLUGINS"
            )
