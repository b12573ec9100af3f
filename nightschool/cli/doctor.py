"""`nightschool doctor`: sends one marked request through every hop, and says what to do where it stops."""

from __future__ import annotations

import argparse
import os

from nightschool.cli import add_config_argument, command_line, start_service

SUMMARY = (
    "send a marked request through app, collector, stream, serving and episode builder; name the first broken hop and its fix"
)
KEY_VARIABLE = "NIGHTSCHOOL_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--tenant", help="the tenant to examine (default: the only tenant)")
    parser.add_argument(
        "--key", help=f"the tenant's API key; safer in the environment as {KEY_VARIABLE}, where others cannot see it"
    )
    parser.add_argument("--collector", metavar="URL", help="where the app sends spans (default: the address of [collector])")
    parser.add_argument("--serving", metavar="URL", help="where the app sends requests (default: the address of [serving])")
    parser.add_argument(
        "--wait",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="longest wait for a record in the stream (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of lines")


def run(arguments: argparse.Namespace) -> int:
    if arguments.key is not None:
        os.environ[KEY_VARIABLE] = arguments.key  # not on the command line of the service, which others can see
    passed = command_line(arguments, "config", "wait", "json", "tenant", "collector", "serving")
    start_service("nightschool_nightly.doctor", passed, part="the doctor", extra="nightly")
