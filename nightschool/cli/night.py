"""`nightschool night`: runs one tenant's night."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, command_line, start_service

SUMMARY = "turn a tenant's new traffic into a better adapter, test it on held-out traffic, and publish it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--tenant", required=True, help="the tenant whose night it is")
    parser.add_argument("--dry-run", action="store_true", help="freeze, show what would be trained on, and stop")
    parser.add_argument(
        "--resume", action="store_true", help="continue the newest unfinished night from its manifest and checkpoint"
    )


def run(arguments: argparse.Namespace) -> int:
    passed = command_line(arguments, "config", "tenant", "dry_run", "resume")
    start_service("nightschool_nightly", passed, part="a night", extra="nightly")
