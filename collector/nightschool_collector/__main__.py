"""`python -m nightschool_collector`: what `nightschool collect` starts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nightschool.config.reader import load_config
from nightschool.errors import MissingExtraError, NightschoolError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the collector; arguments and settings are checked before anything that takes long to import."""
    parser = argparse.ArgumentParser(
        prog="nightschool collect", description="receive spans and logs (OTLP over HTTP and gRPC) and outcomes"
    )
    parser.add_argument("--config", default="nightschool.toml", metavar="FILE", help="the configuration (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config)
        try:
            from nightschool_collector.server import serve
        except ModuleNotFoundError as error:
            raise MissingExtraError("the collector", "collector", error.name or "fastapi") from error
        serve(config, Path(arguments.config))
    except NightschoolError as error:
        print(f"nightschool collect: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
