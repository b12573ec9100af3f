"""`nightschool forget`: a user of a tenant is in no night from now on."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, start_service

SUMMARY = "forget a user: no night learns from them again, local copies go, and what was learnt is named"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--tenant", required=True, help="whose user it is")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", help="the user as the app names them")
    who.add_argument(
        "--subject", help="the user as the stream names them: a pseudonym, or a raw id that a foreign collector stored"
    )
    parser.add_argument("--undo", action="store_true", help="take it back: nights may learn from what is still in the stream")


def run(arguments: argparse.Namespace) -> int:
    passed = ["--config", arguments.config, "--tenant", arguments.tenant]
    passed += ["--user", arguments.user] if arguments.user is not None else ["--subject", arguments.subject]
    passed += ["--undo"] * arguments.undo
    start_service("nightschool_nightly.commands.forget", passed, part="forgetting", extra="nightly")
