"""`nightschool collect`: start the collector."""

from __future__ import annotations

import argparse

from nightschool.cli import add_config_argument, start_service

SUMMARY = "receive spans, logs and outcomes and make them durable in the stream"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    start_service("nightschool_collector", ["--config", arguments.config], part="the collector", extra="collector")
