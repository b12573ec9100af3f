"""`nightschool config`: prints every setting of nightschool.toml, or checks a file."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument
from nightschool.config.reader import load_config
from nightschool.config.schema import describe_settings
from nightschool.errors import ConfigError

SUMMARY = "print every setting of nightschool.toml with its default and meaning, or check a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--check", action="store_true", help="check the file named by --config, and print no settings")


def run(arguments: argparse.Namespace) -> int:
    if arguments.check:
        config = load_config(arguments.config)
        for name, tenant in sorted(config.tenants.items()):
            if missing := [str(path) for path in tenant.rubrics if not path.is_file()]:
                raise ConfigError(
                    f"tenant {name!r} names the rubric {missing[0]}, which does not exist; write it or correct rubrics"
                )
        print(f"{arguments.config} is valid: {len(config.tenants)} tenants ({', '.join(sorted(config.tenants)) or 'none'})")
    else:
        print(describe_settings(), end="")
    return 0
