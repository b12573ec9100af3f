"""Switches vLLM's CPU backend to the grouped LoRA operations; a `vllm.general_plugins` entry point.

vLLM's own CPU operations index the adapter weights with -1 for rows that have no adapter, which picks the LAST slot: a
request to the base model in one batch with a request to an adapter is computed with another tenant's weights. They also
copy the weights once per row. So nothing here may fail without an error: vLLM ignores an error while it imports a
plugin module, but not one inside the plugin function, so everything is imported inside that function; and serving asks
every worker (`LoraProbe`) before it answers the first request.
"""

from __future__ import annotations

import importlib
from typing import Any

GROUPED_WRAPPER = "nightschool_serving.grouped_lora.GroupedPunicaWrapper"
PROBE_METHOD = "nightschool_lora_wrappers"


def install() -> None:
    """Make vLLM build its CPU LoRA layers on the grouped operations; on other platforms do nothing."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or is_active():
        return
    # An import error of the operations must be raised here, not in the middle of loading a model.
    importlib.import_module(GROUPED_WRAPPER.rpartition(".")[0])
    type(current_platform).get_punica_wrapper = classmethod(lambda _: GROUPED_WRAPPER)


def is_active() -> bool:
    """Whether this process builds LoRA layers that keep rows of different adapters apart."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu() or current_platform.get_punica_wrapper() == GROUPED_WRAPPER


class LoraProbe:
    """Added to vLLM's worker by `--worker-extension-cls`: says which operations its LoRA layers were built on."""

    model_runner: Any

    def nightschool_lora_wrappers(self) -> list[str]:
        """Class paths of the LoRA operations in use by this worker."""
        manager = self.model_runner.lora_manager._adapter_manager
        kinds = {type(wrapper) for wrapper in manager.punica_wrapper_mapping.values()}
        return sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
