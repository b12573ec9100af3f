"""When sampler and trainer are too far apart to go on."""

from __future__ import annotations

import pytest

from nightschool.errors import NightError
from nightschool_nightly.training.mismatch import check_mismatch, mean_and_p99


def test_mean_and_percentile_are_those_of_the_tokens() -> None:
    """The 99th percentile of 200 values is the 198th in order; nothing sampled is no number."""
    assert mean_and_p99([float(n) for n in range(200)]) == (99.5, 197.0)
    assert mean_and_p99([]) == (None, None)


@pytest.mark.parametrize("differences", [[], [0.02] * 990 + [0.9] * 10, [0.0] * 991 + [9.0] * 9, [0.0] * 50 + [5.0]])
def test_rounding_goes_on(differences: list[float]) -> None:
    """Small differences, and fewer than one odd token in a hundred, are no reason to lose a night."""
    check_mismatch(3, differences)


@pytest.mark.parametrize("differences", [[0.25] * 10, [0.0] * 980 + [1.5] * 20, [7.5]])
def test_another_model_stops_the_night(differences: list[float]) -> None:
    """Above 0.2 nats on average or 1.0 at the 99th percentile: the step, both numbers and what to do are named."""
    with pytest.raises(NightError, match=r"in step 3 vLLM's .* they do not compute the same model; nothing was published"):
        check_mismatch(3, differences)
