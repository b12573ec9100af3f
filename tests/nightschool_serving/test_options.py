"""The vLLM options that an operator may give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nightschool.errors import ConfigError
from nightschool_serving.options import Takes, allowed_options, check_extra


@pytest.mark.parametrize(
    "extra",
    [
        ["--lora-modules", "x=/y"],
        ["--middleware=x.Y"],
        ["--api_key=k"],
        ["--model", "other"],
        ["--served-model-name=gpt"],
        ["--config=c.yaml"],
        ["--no-enable-lora"],
        ["--shutdown-timeout", "0"],
        ["--enable-prompt-embeds"],
        ["--logits-processors", "x.Y"],
        ["--worker-cls", "x.Y"],
        ["--enable-log-requests"],
        ["--an-option-of-a-later-vllm"],
        ["-O3"],
        ["--compilation-config.custom_ops", "none"],
    ],
)
def test_an_option_that_is_not_on_the_list_is_refused(extra: list[str]) -> None:
    """In every spelling; the message says what is allowed."""
    with pytest.raises(ConfigError, match=r"cannot be given here.*--max-num-seqs"):
        check_extra(["--seed", "1", *extra])


@pytest.mark.parametrize("beginning", ["--gpu-memory", "--max-num", "--tensor-parallel"])
def test_the_beginning_of_a_name_is_refused(beginning: str) -> None:
    """vLLM would complete it, in a later version perhaps to something else."""
    with pytest.raises(ConfigError, match="cannot be given here"):
        check_extra([beginning, "1"])


@pytest.mark.parametrize("extra", [["other-model"], ["--seed", "1", "other-model"], ["--enforce-eager", "x"], ["--seed=1", "x"]])
def test_a_value_of_no_option_is_refused(extra: list[str]) -> None:
    """vLLM would take it for the name of a model."""
    with pytest.raises(ConfigError, match="belongs to no vLLM option"):
        check_extra(extra)


def test_options_that_have_nothing_to_do_with_tenants_pass() -> None:
    """Sizes, kernels and parallelism are the operator's, in the spellings of vLLM's parser."""
    check_extra(["--max-num-seqs", "64", "--tensor_parallel_size=2", "-tp", "2", "--seed", "-1", "--enforce-eager"])
    check_extra(["--no-enable-prefix-caching", "--cudagraph-capture-sizes", "1", "2", "4", "--gpu-memory-utilization", "0.8"])


def test_the_page_lists_every_allowed_option() -> None:
    """docs/serving.md and the list are the same."""
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    section = page.read_text(encoding="utf-8").partition("## vLLM options")[2].partition("\n## ")[0]
    rows = section[section.index("|---|---|") :]
    assert {name.lstrip("-") for name in re.findall(r"`([a-z-]+)`", rows)} == set(allowed_options())


def test_an_option_that_takes_a_value_has_no_negative_form() -> None:
    """Only switches can be switched off."""
    assert allowed_options()["seed"] is Takes.ONE
    with pytest.raises(ConfigError):
        check_extra(["--no-seed"])
