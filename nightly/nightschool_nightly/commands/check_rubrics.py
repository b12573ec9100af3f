"""`python -m nightschool_nightly.commands.check_rubrics`: the part of `nightschool config --check` that reads rubrics."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from nightschool.cli import config as command
from nightschool.config.reader import load_config
from nightschool.config.settings import Config
from nightschool.errors import NightschoolError
from nightschool_nightly.rewards.load import load_rubrics


def what_is_read(config: Config) -> Iterator[str]:
    """A line for each rubric of each tenant: the outcome names it reads; an error for one that no night could use."""
    for tenant, settings in sorted(config.tenants.items()):
        if settings.rubrics:
            for task, rubric in sorted(load_rubrics(config, tenant).items()):
                names = ", ".join(map(repr, rubric.outcome_names)) or "no outcome"
                yield f"tenant {tenant}, task {task!r}: its rubric reads {names}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print that the configuration is valid and what its rubrics read; 2 with one line when a rubric is wrong."""
    parser = argparse.ArgumentParser(prog="nightschool config --check", description=command.SUMMARY)
    command.add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config)
        lines = list(what_is_read(config))
    except NightschoolError as error:
        print(f"nightschool config: {error}", file=sys.stderr)
        return 2
    print(command.is_valid(arguments.config, config))
    print("".join(f"{line}\n" for line in lines), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
