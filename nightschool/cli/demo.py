"""`nightschool demo`: a real day of traffic, a real night, and better answers in the morning, on this machine."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from nightschool.cli import command_line
from nightschool.errors import ConfigError, MissingExtraError
from nightschool.process import become_python

SUMMARY = "a real day, a real night, a better morning: two tenants and one small model, on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        default="var/demo",
        metavar="FOLDER",
        help="the folder for everything it writes; an earlier demo there is replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the simulated agents and of the nights (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    missing = [name for name in ("httpx", "openai", "rich") if find_spec(name) is None]
    if missing:
        raise MissingExtraError("the demo", "all-cpu", missing[0])
    become_python([str(helpdesk_folder() / "demo.py"), *command_line(arguments, "out", "seed")])


def helpdesk_folder() -> Path:
    """The folder examples/helpdesk, in the installed package or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "helpdesk", package.parent / "examples" / "helpdesk"):
        if (folder / "demo.py").is_file():
            return folder
    raise ConfigError("the help-desk example is missing from this installation; run the demo from a checkout")
