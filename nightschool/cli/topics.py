"""`nightschool topics`: shows whether Kafka's topics are set up so that nothing is lost, and creates missing ones."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nightschool.cli import add_config_argument
from nightschool.config.reader import load_config
from nightschool.config.settings import duration_ms
from nightschool.config.stream import open_configured

if TYPE_CHECKING:
    from nightschool.stream.kafka_topics import Difference

SUMMARY = "show how Kafka's topics differ from what a night needs, and create the missing ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_argument(parser)
    parser.add_argument("--create", action="store_true", help="create the topics that are missing; change nothing else")
    parser.add_argument("--check", action="store_true", help="exit with status 1 when anything differs")


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config)
    settings = config.stream
    if not settings.url.startswith("kafka:"):
        print(f"the stream is {settings.url}: its topics need no settings")
        return 0
    from nightschool.stream.kafka import KafkaStream
    from nightschool.stream.kafka_topics import TOPICS

    with open_configured(settings, outcome_window_ms=duration_ms(config.night.outcome_window)) as stream:
        assert isinstance(stream, KafkaStream)
        if arguments.create:
            for topic in (topic for topic in TOPICS if stream.topic_state(topic) is None):
                stream.create_topic(topic, partitions=settings.partitions)
                print(f"created {topic}")
        found = stream.topic_differences()
    for line in _report(found):
        print(line)
    return int(bool(found) and arguments.check)


def _report(found: Sequence[Difference]) -> Iterable[str]:
    if not found:
        yield "every topic is set up as a night needs it"
        return
    rows = [("TOPIC", "SETTING", "IS", "SHOULD BE"), *((one.topic, one.what, one.found, one.planned) for one in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    yield "\nTo repair:"
    yield from (f"  {command}" for command in dict.fromkeys(one.repair for one in found))
