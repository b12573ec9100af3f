"""`nightschool config`: prints every setting of nightschool.toml, or checks a file."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from nightschool.cli import add_config_argument, command_line, start_service
from nightschool.config.reader import load_config
from nightschool.config.schema import describe_settings
from nightschool.config.settings import Config
from nightschool.errors import ConfigError

SUMMARY = "print every setting of nightschool.toml with its default and meaning, or check a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "--check", action="store_true", help="check the file named by --config and its rubrics, and print no settings"
    )


def is_valid(path: str, config: Config) -> str:
    """The line for a configuration in which no mistake was found."""
    return f"{path} is valid: {len(config.tenants)} tenants ({', '.join(sorted(config.tenants)) or 'none'})"


def run(arguments: argparse.Namespace) -> int:
    if arguments.check:
        config = load_config(arguments.config)
        for name, tenant in sorted(config.tenants.items()):
            if missing := [str(path) for path in tenant.rubrics if not path.is_file()]:
                raise ConfigError(
                    f"tenant {name!r} names the rubric {missing[0]}, which does not exist; write it or correct rubrics"
                )
        if not any(tenant.rubrics for tenant in config.tenants.values()):
            print(is_valid(arguments.config, config))
        elif find_spec("nightschool_nightly") is None:
            print(is_valid(arguments.config, config))
            print("its rubrics were not read: that needs pip install 'nightschool[nightly]'")
        else:
            passed = command_line(arguments, "config", "check")
            start_service("nightschool_nightly.commands.check_rubrics", passed, part="reading rubrics", extra="nightly")
    else:
        print(describe_settings(), end="")
    return 0
