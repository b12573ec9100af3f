"""`python -m nightschool_nightly.doctor`: examines every hop and shows what it found."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nightschool.cli import doctor as command
from nightschool.errors import MissingExtraError

if TYPE_CHECKING:
    from nightschool_nightly.doctor.findings import Finding, Report

_SIGNS = {"ok": "ok", "broken": "BROKEN", "not-checked": "-"}


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every hop is well, 1 when one is broken, 2 when the doctor itself could not start."""
    parser = argparse.ArgumentParser(prog="nightschool doctor", description=command.SUMMARY)
    command.add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        # Only now, after the arguments: these imports take seconds, and --help needs none of them.
        from nightschool_nightly.doctor.checkup import examine
        from nightschool_nightly.doctor.visit import Options
    except ModuleNotFoundError as error:
        print(f"nightschool doctor: {MissingExtraError('the doctor', 'nightly', error.name or '?')}", file=sys.stderr)
        return 2
    # Without a handler the tracer's warnings would be printed between the lines of the hops, which say the same better.
    logging.getLogger("nightschool").addHandler(logging.NullHandler())
    options = Options(
        Path(arguments.config),
        arguments.tenant,
        arguments.key or os.environ.get(command.KEY_VARIABLE),
        arguments.collector,
        arguments.serving,
        arguments.wait,
    )
    if arguments.json:
        report = examine(options)
        print(json.dumps(report.to_json()))
    else:
        report = examine(options, tell=show)
        show_end(report)
    return 0 if report.is_well else 1


def show(finding: Finding) -> None:
    """Print one line for a hop, and below it what arrived and what to do."""
    print(f"{_SIGNS[finding.status]:>6}  {finding.hop:<16} {_printable(finding.text)}", flush=True)
    if finding.arrived:
        marks = ", ".join(f"{name} {'yes' if is_there else 'NO'}" for name, is_there in finding.arrived.items())
        print(f"{'':>6}  {'':<16} arrived: {marks}", flush=True)
    if finding.fix:
        print(f"{'':>6}  {'':<16} do: {_printable(finding.fix)}", flush=True)


def show_end(report: Report) -> None:
    """Print the line that sums up."""
    first = report.first_broken
    print(f"\nthe first broken hop is: {first.hop}" if first else "\nall is well, from the app to the episode of the night")


def _printable(text: str) -> str:
    """What can be printed of a text: a server's answer may hold codes that control the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not sys.exit, which waits for threads: a hop that never ended has left one behind
