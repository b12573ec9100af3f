"""Rollouts that share their prompt's last block, in a real engine in fp32; vLLM wants a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

_PROGRAM = """
import json, sys
from pathlib import Path
from nightschool.registry.base_model import base_model_folder
from nightschool_nightly.rollouts import prompt_tails
from nightschool_nightly.rollouts.engine import RolloutEngine
from nightschool_nightly.rollouts.engine_options import EngineSettings
from nightschool_nightly.rollouts.sampler import SampleRequest

loads = []
load = prompt_tails.PromptTailConnector.start_load_kv
def counted(self, *args, **kwargs):
    loads.extend(self._get_connector_metadata().load)
    return load(self, *args, **kwargs)
prompt_tails.PromptTailConnector.start_load_kv = counted

settings = EngineSettings(dtype="float32", targets=("q_proj",), max_lora_rank=8, max_model_len=256, max_num_seqs=16, kv_cache_bytes=1 << 30)
engine = RolloutEngine(base_model_folder("smollm2-135m-instruct"), settings, adapters=Path(sys.argv[1]))
# 31 + 1, 32 + 1 and 64 tokens stand around the ends of a block; the same prompt twice is one tail.
prompts = [tuple(range(300, 300 + length)) for length in (5, 32, 33, 50, 64)] + [tuple(range(300, 350))]
requests = [SampleRequest(prompt, 4, 5, 1.0, 7 * number) for number, prompt in enumerate(prompts)]
results = {}
for name in ("shared", "again", "alone"):
    if name == "alone":
        prompt_tails.PromptTailConnector.get_num_new_matched_tokens = lambda self, request, computed: (0, False)
    loads.clear()
    found = engine.sample(requests)
    results[name] = {"loads": len(loads), "answers": [[[list(r.token_ids), list(r.logprobs)] for r in group] for group in found]}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder: Path = tmp_path_factory.mktemp("tails")
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "GOMP_SPINCOUNT": "1000"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, dict[str, object]] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_a_group_shares_its_prompts_tail(results: dict[str, dict[str, object]]) -> None:
    """Every rollout is given the tail, unless its prompt ends just behind a whole block and has none."""
    # Of six prompts, the one of 33 tokens has only its last token to compute.
    assert results["shared"]["loads"] == 5 * 4
    assert results["alone"]["loads"] == 0


def test_sharing_changes_no_answer(results: dict[str, dict[str, object]]) -> None:
    """The same tokens and, to fp32 precision, log-probabilities as when every rollout computes its prompt alone."""
    for shared, alone in zip(_flat(results["shared"]), _flat(results["alone"]), strict=True):
        assert shared[0] == alone[0]
        assert shared[1] == pytest.approx(alone[1], abs=1e-3)


def test_a_second_step_starts_from_nothing(results: dict[str, dict[str, object]]) -> None:
    """Tails are forgotten between steps, because the weights change; the same step gives the same answers."""
    assert results["again"] == results["shared"]


def _flat(result: dict[str, object]) -> list[tuple[list[int], list[float]]]:
    groups = result["answers"]
    assert isinstance(groups, list)
    return [(tokens, logprobs) for group in groups for tokens, logprobs in group]
