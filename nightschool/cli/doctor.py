"""`nightschool doctor`: one marked request through every hop, and what to do where it stops."""

from __future__ import annotations

import argparse
import os

from nightschool.cli import add_config_argument, start_service

SUMMARY = (
    "send a marked request through app, collector, stream, serving and episode builder; name the first broken hop and its fix"
)
KEY_VARIABLE = "NIGHTSCHOOL_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--tenant", help="whose way is examined (default: the only tenant)")
    parser.add_argument("--key", help=f"the tenant's API key; better in the environment as {KEY_VARIABLE}, where nobody sees it")
    parser.add_argument("--collector", metavar="URL", help="where the app's spans go (default: what [collector] listens on)")
    parser.add_argument("--serving", metavar="URL", help="where the app's requests go (default: what [serving] listens on)")
    parser.add_argument(
        "--wait",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="longest wait for a record in the stream (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


def run(arguments: argparse.Namespace) -> int:
    passed = ["--config", arguments.config, "--wait", str(arguments.wait)] + ["--json"] * arguments.json
    if arguments.key is not None:
        os.environ[KEY_VARIABLE] = arguments.key  # not on the command line of another process
    for name in ("tenant", "collector", "serving"):
        if (value := getattr(arguments, name)) is not None:
            passed += [f"--{name}", value]
    start_service("nightschool_nightly.doctor", passed, part="the doctor", extra="nightly")
