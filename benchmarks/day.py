"""A day of a million episodes, of which one in ten has an outcome: what does it cost to choose a night's prompts?

    make bench NAME=day
    python benchmarks/day.py --episodes 200000 --against ../older-checkout

Episodes are made one by one, as the store hands them out after its join, with token ids as the server records them;
the join itself is measured by `collect.py`. `--against` runs the same on the code of another checkout. Processor time
and peak memory are those of a process of its own; memory is with all its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).with_suffix(".json")
TOKENS, SHARED = 300, 200  # of a prompt; the first ones are the same in all: a system prompt
USERS = 20_000
OUTCOME_EVERY = 10
VOCABULARY = 49_152
RUBRIC = 'task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"'


class NoTokenizer:
    """Every prompt has recorded ids, so none is rendered."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        raise AssertionError("a prompt without recorded ids")


def day(num_episodes: int) -> Iterator[Any]:
    """The episodes of a day, as the store gives them."""
    from nightschool.episode import Episode, Message, OutcomeHistory, RecordedCall, SampledTokens, TextPart
    from nightschool.outcomes.record import Outcome
    from nightschool_nightly.episodes.assemble import BuiltEpisode

    for number in range(num_episodes):
        has_outcome = not number % OUTCOME_EVERY
        # Only the prompt of an episode with an outcome is looked at; to make the others' ids would be most of the time.
        ids = (
            (*range(1000, 1000 + SHARED), *divmod(number, VOCABULARY), *range(2000, 1998 + TOKENS - SHARED))
            if has_outcome
            else ()
        )
        messages = (Message("user", (TextPart(f"message {number}"),)),)
        tokens = SampledTokens(ids, (1,), (-0.1,), "t")
        call = RecordedCall(f"{number:016x}", messages, Message("assistant", (TextPart("card"),)), tokens=tokens)
        outcome = Outcome({"response_id": f"r{number}"}, "queue", value="fraud")
        outcomes = (OutcomeHistory(outcome, (outcome,)),) if has_outcome else ()
        user = f"user-{number * 31 % USERS}"
        yield BuiltEpisode(Episode("acme", f"{number:032x}", "triage", user, None, number, (call,), outcomes), True)


def choose(num_episodes: int) -> dict[str, Any]:
    """Choose out of a day in this process; what it took."""
    from nightschool.config.settings import NightConfig
    from nightschool_nightly.examples.select import select_examples
    from nightschool_nightly.rewards.rubric import parse_rubric

    started = time.process_time()
    selection = select_examples(
        day(num_episodes),
        tenant="acme",
        settings=NightConfig(),
        rubrics={"triage": parse_rubric(RUBRIC)},
        tokenizer=NoTokenizer(),
        max_model_len=2048,
        tokenizer_digest="t",
    )
    return {
        "cpu_seconds": round(time.process_time() - started, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "train": len(selection.train),
        "holdout": len(selection.holdout),
        "left_out": dict(selection.dropped),
    }


def in_process(num_episodes: int, checkout: Path) -> dict[str, Any]:
    """Choose in a process of its own, with the code of `checkout`."""
    path = os.pathsep.join(str(checkout / part) for part in (".", "nightly", "collector", "serving"))
    command = [sys.executable, __file__, "--child", "--episodes", str(num_episodes)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=1_000_000)
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(choose(arguments.episodes)))
        return
    result: dict[str, Any] = {"episodes": arguments.episodes, "with_outcome": arguments.episodes // OUTCOME_EVERY}
    result["now"] = in_process(arguments.episodes, ROOT)
    if arguments.against:
        result["before"] = in_process(arguments.episodes, arguments.against)
        result["peak_ratio"] = round(result["before"]["peak_mb"] / result["now"]["peak_mb"], 1)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
