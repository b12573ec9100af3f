"""The `nightschool` command. Each command is one file, and declares its arguments without importing anything heavy.

A service is started as a process of its own (`python -m nightschool_nightly`) and never imported, so that help is
printed at once and needs no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

from nightschool.errors import MissingExtraError, NightschoolError
from nightschool.process import become_python

_CONFIGS = ("nightschool.toml", "var/demo/nightschool.toml")
"""Where the configuration is looked for: the user's own, else the demo's."""
COMMANDS = ("demo", "init", "key", "config", "topics", "collect", "doctor", "episodes", "night", "forget", "serve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors raised on purpose become one line on standard error and exit status 2."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except NightschoolError as error:
        print(f"nightschool {arguments.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a file that cannot be written, a port in use: not a fault of ours, so no traceback
        print(f"nightschool {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # as a shell reports a program that Ctrl-C ended


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command in it."""
    parser = argparse.ArgumentParser(
        prog="nightschool",
        description="Your production traffic teaches your models while you sleep.",
        epilog="Start with: nightschool demo",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f"nightschool.cli.{name}")
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def find_config() -> str:
    """The configuration of the current folder, else the demo's; the first name where there is neither."""
    return next((path for path in _CONFIGS if os.path.isfile(path)), _CONFIGS[0])  # noqa: PTH113 - pathlib starts slower


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add --config, which is the same in every command that reads nightschool.toml."""
    text = f"the configuration (default: {_CONFIGS[0]}, else the demo's {_CONFIGS[1]})"
    parser.add_argument("--config", default=find_config(), metavar="FILE", help=text)


def command_line(arguments: argparse.Namespace, *names: str) -> list[str]:
    """The options `names` of `arguments` as a command line again; an option without a value is left out."""
    line: list[str] = []
    for name in names:
        option, value = f"--{name.replace('_', '-')}", getattr(arguments, name)
        if value is True:
            line.append(option)
        elif value is not None and value is not False:
            line += [option, str(value)]
    return line


def start_service(package: str, arguments: Sequence[str], *, part: str, extra: str) -> NoReturn:
    """Replace this process by `python -m package arguments`; `MissingExtraError` when `package` is not installed."""
    if find_spec(package.partition(".")[0]) is None:
        raise MissingExtraError(part, extra, package)
    become_python(["-m", package, *arguments])
