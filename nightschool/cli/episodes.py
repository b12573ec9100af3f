"""`nightschool episodes`: shows what a night would train on."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, command_line, start_service

SUMMARY = "show what a tenant's next night would learn from, and why it would leave the rest out; writes nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--tenant", required=True, help="the tenant whose episodes are shown")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many episodes to show (default: %(default)s)")
    parser.add_argument("--drops", action="store_true", help="show only what is left out: reasons, counts and what to do")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of tables, with nothing shortened")


def run(arguments: argparse.Namespace) -> int:
    passed = command_line(arguments, "config", "tenant", "limit", "drops", "json")
    start_service("nightschool_nightly.commands.episodes", passed, part="looking at episodes", extra="nightly")
