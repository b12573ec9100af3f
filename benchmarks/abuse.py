"""Measures what each bad client costs an honest tenant beside it, at the collector and at serving.

`make bench NAME=abuse`. It runs the cases of `abuse_collector.py` and, where it is there, of `abuse_serving.py`, which
say what they measure. Each case is one JSON object a line; the last line is a JSON object of all:

`collector_peak_mb`  the largest memory of the collector's process in any case
`guard_extra_mb`     the most that a case added to the memory of `nightschool serve`; null if that was not measured
`honest_p99_ratio`   the largest ratio of the honest tenant's p99 with the bad client to that without it
`acked_lost`         requests that were acknowledged to the honest tenant and are not in the stream
`cases`              each case
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import abuse_collector  # noqa: E402 - run as a script
from nightschool.machine import read_machine  # noqa: E402

SERVING = "benchmarks.abuse_serving"


def cases(num_requests: int, *, serving: bool) -> Iterator[dict[str, Any]]:
    """Every case there is; each says in `server` which process it was measured at."""
    for case in abuse_collector.cases(num_requests):
        yield {"server": "collector", **case}
    if serving:
        for case in importlib.import_module(SERVING).cases(num_requests):
            yield {"server": "serving", **case}


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The last line; what no case measured is null."""

    def most(name: str) -> float | None:
        return max((case[name] for case in found if name in case), default=None)

    lost = [case["acked_lost"] for case in found if "acked_lost" in case]
    return {
        "collector_peak_mb": most("collector_peak_mb"),
        "guard_extra_mb": most("guard_extra_mb"),
        "honest_p99_ratio": most("honest_p99_ratio"),
        "acked_lost": sum(lost) if lost else None,
        "cases": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=300, help="honest requests in each measurement")
    parser.add_argument("--no-serving", action="store_true", help="measure the collector only")
    parser.add_argument("--out", type=Path, help="a file for the last line, with the hardware and its load")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    found = []
    for case in cases(arguments.requests, serving=not arguments.no_serving and find_spec(SERVING) is not None):
        print(json.dumps(case), flush=True)
        found.append(case)
    result = summary(found)
    if arguments.out:
        machine = read_machine()
        about = {**result, "hardware": f"{machine.name}, {machine.cores} cores", "load_before": round(load, 1)}
        arguments.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
