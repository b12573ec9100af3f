"""`python -m nightschool_nightly`: one tenant's night. Arguments are read before anything heavy is imported."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time

from nightschool.cli import night as command
from nightschool.config.reader import load_config
from nightschool.errors import MissingExtraError, NightschoolError


def main() -> int:
    """Run the night; 0 when it ended, published or not, 2 when it stopped with an error."""
    parser = argparse.ArgumentParser(prog="nightschool night", description=command.SUMMARY)
    command.add_arguments(parser)
    arguments, started = parser.parse_args(), time.monotonic()
    try:
        config = load_config(arguments.config)
        config.tenant(arguments.tenant)
        try:
            from rich.console import Console

            from nightschool_nightly.night import run_night
            from nightschool_nightly.progress import Progress
        except ModuleNotFoundError as error:
            raise MissingExtraError("a night", "nightly", error.name or "?") from error
        result = run_night(
            config,
            arguments.tenant,
            dry_run=arguments.dry_run,
            resume=arguments.resume,
            progress=Progress(Console(width=None if sys.stdout.isatty() else 110)),
            now_ms=lambda: time.time_ns() // 1_000_000,
        )
    except NightschoolError as error:
        print(f"nightschool night: {error}", file=sys.stderr)
        return 2
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{result.end}: {result.text} ({time.monotonic() - started:.0f} s, peak memory {peak_mib} MiB)")
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All that matters is on disk by now. Taking torch and vLLM down object by object would take three seconds.
    os._exit(code)
