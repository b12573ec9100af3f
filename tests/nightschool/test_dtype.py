"""The number type that `auto` chooses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nightschool import dtype
from nightschool.dtype import AUTO, DTYPES, fast_dtype, gpu_has_bf16, resolve_dtype
from nightschool.errors import ConfigError, MissingExtraError


@pytest.mark.parametrize("name", DTYPES)
def test_a_type_that_is_configured_is_taken(name: str) -> None:
    """Nothing is looked at, so that a night on one machine can be made for the servers of another kind."""
    assert resolve_dtype(name) == name


@pytest.mark.parametrize(
    ("has_bf16", "on_gpu", "chosen"),
    [(True, False, "bfloat16"), (True, True, "bfloat16"), (False, False, "float32"), (False, True, "float16")],
)
def test_auto_is_the_type_that_the_processor_computes_fast(has_bf16: bool, on_gpu: bool, chosen: str) -> None:
    """bf16 where it is native; else fp32 on CPUs, whose bf16 and fp16 are slower, and fp16 on GPUs."""
    assert fast_dtype(has_bf16=has_bf16, on_gpu=on_gpu) == chosen


def test_the_variable_of_onednn_is_obeyed_without_torch() -> None:
    """ONEDNN_MAX_CPU_ISA=AVX2 makes any CPU one without bf16; finding that out imports nothing heavy."""
    script = "import sys; from nightschool.dtype import resolve_dtype; print(resolve_dtype('auto'), 'torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], env={"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["float32", "False"]


@pytest.mark.parametrize(("answer", "native"), [("true", True), ("false", False)])
def test_a_gpu_is_asked_by_a_process_of_its_own(answer: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line is the answer, whatever PyTorch prints before it."""
    monkeypatch.setattr(dtype, "_ASK_TORCH", f"print('a warning'); print('{answer}')")
    assert gpu_has_bf16() is native


@pytest.mark.parametrize("script", ["print('null')", "raise SystemExit(3)", "print('x')", ""])
def test_a_gpu_build_without_a_gpu_says_what_to_do(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is guessed: a wrong type would be found by a server that refuses the release."""
    monkeypatch.setattr(dtype, "_ASK_TORCH", script)
    with pytest.raises(ConfigError, match=r"dtype is 'auto', but .* finds no GPU to ask; set dtype to one of bfloat16"):
        gpu_has_bf16()


def test_the_question_is_one_that_pytorch_understands() -> None:
    """The real script runs with the real PyTorch: null without a GPU, else whether bf16 is native."""
    asked: Any = subprocess.run([sys.executable, "-c", dtype._ASK_TORCH], capture_output=True, text=True, check=True)
    assert asked.stdout.split()[-1] in ("null", "true", "false")


def test_without_vllm_the_cpu_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that only reads, as `nightschool episodes` does, needs no vLLM for it."""

    def missing() -> bool:
        raise MissingExtraError("serving", "serving-cpu", "vllm")

    monkeypatch.setattr(dtype, "serves_on_cpu", missing)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert resolve_dtype(AUTO) == "float32"


def test_auto_on_a_gpu_build_asks_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's instructions say nothing about the GPU beside it."""
    monkeypatch.setattr(dtype, "serves_on_cpu", lambda: False)
    monkeypatch.setattr(dtype, "gpu_has_bf16", lambda: False)
    assert resolve_dtype(AUTO) == "float16"
