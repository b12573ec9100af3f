"""`nightschool collect`: starts the collector."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, command_line, start_service

SUMMARY = "receive spans, logs and outcomes, and store them durably in the stream"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    start_service("nightschool_collector", command_line(arguments, "config"), part="the collector", extra="collector")
