"""`nightschool serve`: start vLLM with our endpoint plugin."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, start_service

SUMMARY = "serve the base model and every tenant's release on vLLM, hot-loading from the registry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument(
        "vllm", nargs=argparse.REMAINDER, metavar="-- VLLM ARGUMENTS", help="passed on to the vLLM server as they are"
    )


def run(arguments: argparse.Namespace) -> int:
    extra = [argument for argument in arguments.vllm if argument != "--"]
    start_service("nightschool_serving", ["--config", arguments.config, "--", *extra], part="serving", extra="serving-cpu")
