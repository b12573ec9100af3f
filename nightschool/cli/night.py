"""`nightschool night`: run one tenant's night."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, start_service

SUMMARY = "turn a tenant's new traffic into a better adapter, prove it on held-out traffic, and publish it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--tenant", required=True, help="whose night it is")
    parser.add_argument("--dry-run", action="store_true", help="freeze and show what would be trained on, then stop")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the newest unfinished night from its manifest and checkpoint"
    )


def run(arguments: argparse.Namespace) -> int:
    passed = ["--config", arguments.config, "--tenant", arguments.tenant]
    passed += ["--dry-run"] * arguments.dry_run + ["--resume"] * arguments.resume
    start_service("nightschool_nightly", passed, part="a night", extra="nightly")
