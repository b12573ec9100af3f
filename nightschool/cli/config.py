"""`nightschool config`: prints every setting, the values of a file, or whether the file is valid."""

from __future__ import annotations

import argparse
from pathlib import Path

from nightschool.cli import add_config_argument, find_config
from nightschool.config.reader import load_config, parse_config
from nightschool.config.schema import describe_settings, describe_values
from nightschool.errors import ConfigError

SUMMARY = "print every setting with its default and meaning; with --config FILE the values in that file, or check it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.set_defaults(config=None)  # so that a file somebody names can be told from the one that is found
    parser.add_argument("--check", action="store_true", help="check the file, and print no settings")


def run(arguments: argparse.Namespace) -> int:
    if arguments.check:
        path = arguments.config or find_config()
        config = load_config(path)
        for name, tenant in sorted(config.tenants.items()):
            if missing := [str(path) for path in tenant.rubrics if not path.is_file()]:
                raise ConfigError(
                    f"tenant {name!r} names the rubric {missing[0]}, which does not exist; write it or correct rubrics"
                )
        print(f"{path} is valid: {len(config.tenants)} tenants ({', '.join(sorted(config.tenants)) or 'none'})")
    elif arguments.config:
        defaults = parse_config("", base=Path(arguments.config).resolve().parent)
        print(describe_values(load_config(arguments.config), defaults), end="")
    else:
        print(describe_settings(), end="")
    return 0
