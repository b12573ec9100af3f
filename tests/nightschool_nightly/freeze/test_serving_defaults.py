"""What serving fills in where a request says nothing, as a night freezes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nightschool.config.settings import ServingConfig
from nightschool.errors import NightError
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.freeze.serving_defaults import ServingDefaults, serving_defaults

WRITTEN = {"temperature": 0.6, "top_k": 50, "top_p": None, "repetition_penalty": 1.0, "max_new_tokens": 300, "eos_token_id": 2}


def model(folder: Path, *, name: str = "generation_config.json", **content: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / name).write_text(json.dumps({"model_type": "llama", **content}))
    return folder


def test_limits_are_the_configured_ones_and_the_models(tmp_path: Path) -> None:
    """The window and the default limit of [serving]; the model's own limit and sampling parameters beside them."""
    found = serving_defaults(ServingConfig(max_model_len=512, default_max_tokens=99), model(tmp_path, **WRITTEN))
    assert found == ServingDefaults(512, 99, {"temperature": 0.6, "top_k": 50, "repetition_penalty": 1.0}, 300)
    assert ServingDefaults(**json.loads(json.dumps(found.to_json()))) == found


def test_a_model_that_says_nothing_has_no_defaults(tmp_path: Path) -> None:
    """Without generation_config.json the API's defaults hold, and of config.json the limit alone, as in vLLM."""
    assert serving_defaults(ServingConfig(), model(tmp_path, name="config.json")) == ServingDefaults(2048)
    found = serving_defaults(ServingConfig(), model(tmp_path, name="config.json", **WRITTEN))
    assert found == ServingDefaults(2048, 0, {}, 300)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """Nothing is guessed: what cannot be read would be served otherwise than tested."""
    (model(tmp_path) / "generation_config.json").write_text("{")
    with pytest.raises(NightError, match=r"generation_config\.json is not valid JSON"):
        serving_defaults(ServingConfig(), tmp_path)


def test_another_serving_is_another_night(make_manifest: Callable[..., NightManifest]) -> None:
    """The window and the defaults decide what a night samples, so they are in its digest; older nights keep theirs."""
    nights = [
        make_manifest(serving=ServingDefaults(length, default).to_json()) for length, default in ((512, 0), (256, 0), (512, 9))
    ]
    assert len({night.digest for night in nights}) == 3
    assert NightManifest.from_json(nights[0].to_json()) == nights[0]
    without = make_manifest()
    assert replace(without, serving={}).digest == without.digest != nights[0].digest


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when vLLM is imported
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_vllm_finds_the_same_defaults(tiny_model: Path, tmp_path: Path, name: str) -> None:
    """`ModelConfig.get_diff_sampling_param`, which vLLM's server reads them with."""
    from vllm.config import ModelConfig

    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    held = json.loads((tmp_path / name).read_text()) if name == "config.json" else {}
    (tmp_path / name).write_text(json.dumps({**held, **WRITTEN, "presence_penalty": 0.5}))
    ours = serving_defaults(ServingConfig(), tmp_path)
    theirs = ModelConfig(str(tmp_path), skip_tokenizer_init=True).get_diff_sampling_param()
    assert theirs == {**ours.sampling, "max_tokens": ours.model_max_tokens}
