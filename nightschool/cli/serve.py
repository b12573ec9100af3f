"""`nightschool serve`: starts vLLM with our endpoint plugin."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, command_line, start_service

SUMMARY = "serve the base model and every tenant's release on vLLM, loading new releases while it runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "vllm", nargs=argparse.REMAINDER, metavar="-- VLLM ARGUMENTS", help="passed on unchanged to the vLLM server"
    )


def run(arguments: argparse.Namespace) -> int:
    extra = [argument for argument in arguments.vllm if argument != "--"]
    passed = [*command_line(arguments, "config"), "--", *extra]
    start_service("nightschool_serving", passed, part="serving", extra="serving-cpu")
