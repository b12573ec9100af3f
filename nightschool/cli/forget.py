"""`nightschool forget`: from now on no night learns from a user."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, command_line, start_service

SUMMARY = (
    "forget a user: no night learns from them again, local copies are deleted, and releases that learned from them are named"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--tenant", required=True, help="the tenant whose user it is")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", help="the user, as the app names them")
    who.add_argument(
        "--subject", help="the user, as the stream names them: a pseudonym, or a raw id that another collector stored"
    )
    parser.add_argument(
        "--undo", action="store_true", help="take it back: nights may again learn from what is still in the stream"
    )


def run(arguments: argparse.Namespace) -> int:
    passed = command_line(arguments, "config", "tenant", "user", "subject", "undo")
    start_service("nightschool_nightly.commands.forget", passed, part="forgetting", extra="nightly")
