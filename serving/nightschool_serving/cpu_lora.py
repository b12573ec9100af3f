"""Switches vLLM's CPU backend to the grouped LoRA operations; a `vllm.general_plugins` entry point.

vLLM's own CPU operations index the adapter weights with -1 for rows that have no adapter, which picks the LAST slot: a base
request batched with an adapter request is computed with another tenant's weights. They also copy the weights once per row. So
nothing here may fail in silence: vLLM swallows an error while importing a plugin module but not one inside the plugin
function, which is why everything is imported inside it, and serving asks every worker (`LoraProbe`) before it answers anybody.
"""

from __future__ import annotations

import importlib
from typing import Any

GROUPED_WRAPPER = "nightschool_serving.grouped_lora.GroupedPunicaWrapper"
PROBE_METHOD = "nightschool_lora_wrappers"


def install() -> None:
    """Make vLLM build its CPU LoRA layers on the grouped operations; nothing to do on other platforms, or twice."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or is_active():
        return
    # Import errors of the operations must surface here, not in the middle of loading a model.
    importlib.import_module(GROUPED_WRAPPER.rpartition(".")[0])
    type(current_platform).get_punica_wrapper = classmethod(lambda _: GROUPED_WRAPPER)


def is_active() -> bool:
    """Whether this process builds LoRA layers that keep rows of different adapters apart."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu() or current_platform.get_punica_wrapper() == GROUPED_WRAPPER


class LoraProbe:
    """Mixed into vLLM's worker by `--worker-extension-cls`: says what the model's LoRA layers were really built on."""

    model_runner: Any

    def nightschool_lora_wrappers(self) -> list[str]:
        """Class paths of the LoRA operations in use by this worker."""
        manager = self.model_runner.lora_manager._adapter_manager
        kinds = {type(wrapper) for wrapper in manager.punica_wrapper_mapping.values()}
        return sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
