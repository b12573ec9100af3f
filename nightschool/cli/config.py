"""`nightschool config`: prints every setting, the values of a file, or whether the file is valid."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from nightschool.cli import add_config_argument, command_line, find_config, start_service
from nightschool.config.reader import load_config, parse_config
from nightschool.config.schema import describe_settings, describe_values
from nightschool.config.settings import Config
from nightschool.errors import ConfigError

SUMMARY = "print every setting with its default and meaning; with --config FILE the values in that file, or check it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.set_defaults(config=None)  # so that a file somebody names can be told from the one that is found
    parser.add_argument("--check", action="store_true", help="check the file and its rubrics, and print no settings")


def is_valid(path: str, config: Config) -> str:
    """The line for a configuration in which no mistake was found."""
    return f"{path} is valid: {len(config.tenants)} tenants ({', '.join(sorted(config.tenants)) or 'none'})"


def run(arguments: argparse.Namespace) -> int:
    if arguments.check:
        path = arguments.config or find_config()
        config = load_config(path)
        for name, tenant in sorted(config.tenants.items()):
            if missing := [str(path) for path in tenant.rubrics if not path.is_file()]:
                raise ConfigError(
                    f"tenant {name!r} names the rubric {missing[0]}, which does not exist; write it or correct rubrics"
                )
        if not any(tenant.rubrics for tenant in config.tenants.values()):
            print(is_valid(path, config))
        elif find_spec("nightschool_nightly") is None:
            print(is_valid(path, config))
            print("its rubrics were not read: that needs pip install 'nightschool[nightly]'")
        else:
            arguments.config = path
            passed = command_line(arguments, "config", "check")
            start_service("nightschool_nightly.commands.check_rubrics", passed, part="reading rubrics", extra="nightly")
    elif arguments.config:
        defaults = parse_config("", base=Path(arguments.config).resolve().parent)
        print(describe_values(load_config(arguments.config), defaults), end="")
    else:
        print(describe_settings(), end="")
    return 0
