"""`nightschool episodes`: look at what would be trained on."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, start_service

SUMMARY = "show what a tenant's next night would learn from, and why it would leave out the rest; writes nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--tenant", required=True, help="whose episodes")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many episodes to show (default: %(default)s)")
    parser.add_argument("--drops", action="store_true", help="only what is left out: reasons, counts and what to do")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables, with nothing shortened")


def run(arguments: argparse.Namespace) -> int:
    passed = ["--config", arguments.config, "--tenant", arguments.tenant, "--limit", str(arguments.limit)]
    passed += ["--drops"] * arguments.drops + ["--json"] * arguments.json
    start_service("nightschool_nightly.commands.episodes", passed, part="looking at episodes", extra="nightly")
