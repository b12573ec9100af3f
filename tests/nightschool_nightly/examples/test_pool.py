"""Examples wait in a file: what comes back is what was put in, and memory holds those that were chosen."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from nightschool.config.settings import NightConfig
from nightschool.episode import SampledTokens
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.examples.example import Example
from nightschool_nightly.examples.pool import Pool
from nightschool_nightly.examples.select import select_examples
from nightschool_nightly.freeze.serving_defaults import ServingDefaults
from tests.nightschool_nightly.examples.test_select import RUBRIC, Letters, call, episode

MIB = 1 << 20


def test_an_example_comes_back_whole(tmp_path: Path, make_example: Callable[..., Example]) -> None:
    """To the last field, in any order; its row says what decides; the file goes with the pool."""
    one, two = make_example("e1", stop=("x",), prompt_ids=(70_000, 1)), make_example("e2", demonstration=None, references={})
    with Pool(tmp_path / "pool", "acme") as pool:
        first, second = pool.put(one), pool.put(two)
        assert (pool.get(second), pool.get(first)) == (two, one)
        assert (first.id, first.task, first.cluster) == (one.id, one.task, one.cluster) and first.prompt != second.prompt
    assert not list(tmp_path.iterdir())


def test_memory_holds_what_was_chosen_and_not_what_could_have_been() -> None:
    """A hundred prompts of 10,000 tokens are 36 MiB as Python numbers; the four that are chosen are less than two."""

    def day() -> Iterator[BuiltEpisode]:
        for number in range(100):
            tokens = SampledTokens(tuple(range(1000 + number, 11_000 + number)), (1,), (-0.1,))
            yield episode(number, calls=(call(number, tokens=tokens),))

    tracemalloc.start()
    try:
        selection = select_examples(
            day(),
            tenant="acme",
            settings=NightConfig(steps=1, prompts_per_step=2, max_holdout=2),
            rubrics={"triage": RUBRIC},
            tokenizer=Letters(),
            serving=ServingDefaults(20_000),
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(selection.train) == len(selection.holdout) == 2
    assert peak < 8 * MIB
