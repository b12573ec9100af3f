"""What is frozen on a real Kafka: topics that are created again and records that expire are found, by their ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from nightschool import semconv
from nightschool.errors import DataLossError
from nightschool.stream import Record, Stream, open_stream
from nightschool_nightly.freeze.freeze import check_unchanged, freeze_whole_stream
from nightschool_nightly.freeze.manifest import NightManifest

pytestmark = pytest.mark.kafka
SPANS = semconv.TOPIC_SPANS


@pytest.fixture(scope="module")
def broker(
    kafka_jars: Any, start_broker: Callable[..., AbstractContextManager[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A broker of its own: these are the real topic names."""
    with start_broker(kafka_jars, tmp_path_factory.mktemp("freeze-kafka")) as running:
        yield running


@pytest.fixture
def stream(broker: Any) -> Iterator[Stream]:
    """The stream with ten records in its one partition; the topic is deleted afterwards."""
    with open_stream(f"kafka://{broker.bootstrap}", partitions=1) as stream:
        fill(stream, 10)
        yield stream
    delete_topic(broker)


def fill(stream: Stream, count: int) -> None:
    stream.append(SPANS, [Record(b"k", b"%d" % number) for number in range(count)])


def delete_topic(broker: Any) -> None:
    from kafka import KafkaAdminClient

    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.delete_topics([SPANS])


def expire(broker: Any, *, before: int) -> None:
    """Move the first offset that is held, as retention does."""
    from kafka import KafkaAdminClient, TopicPartition

    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.delete_records({TopicPartition(SPANS, 0): before})


def freeze(stream: Stream, last: NightManifest | None = None) -> NightManifest:
    return freeze_whole_stream(stream, tenant="acme", now_ms=1, last=last)


def test_a_topic_created_again_is_refused(stream: Stream, broker: Any) -> None:
    """The same name and offsets can be other records: neither the next night nor a resumed one reads them."""
    last = freeze(stream)
    check_unchanged(stream, last.ranges)
    delete_topic(broker)
    with open_stream(f"kafka://{broker.bootstrap}", partitions=1) as again:
        fill(again, 20)
        with pytest.raises(DataLossError, match=r"topic ns\.otlp_spans is not the one the last night read .* re-created"):
            freeze(again, last)
        with pytest.raises(DataLossError, match=r"topic ns\.otlp_spans is not the one that was frozen .* without --resume"):
            check_unchanged(again, last.ranges)


def test_expired_offsets_are_refused_by_their_range(stream: Stream, broker: Any) -> None:
    """Offsets that expired before a night read them are named; those that a night has read may expire."""
    last = freeze(stream)
    fill(stream, 10)
    expire(broker, before=10)
    assert freeze(stream, last).has_new_records
    with pytest.raises(DataLossError, match=r"partition 0: offsets 0 to 9 expired since they were frozen; start a new night"):
        check_unchanged(stream, last.ranges)
    expire(broker, before=13)
    with pytest.raises(DataLossError, match=r"partition 0: offsets 10 to 12 expired before any night read them"):
        freeze(stream, last)


def test_a_topic_that_is_gone_is_refused(stream: Stream, broker: Any) -> None:
    """Deleted and not created again: not an empty day."""
    last = freeze(stream)
    delete_topic(broker)
    with open_stream(f"kafka://{broker.bootstrap}", partitions=1) as again:
        with pytest.raises(DataLossError, match=r"partition 0, which the last night read, is gone"):
            freeze(again, last)
        with pytest.raises(DataLossError, match="is not the one that was frozen"):
            check_unchanged(again, last.ranges)
        fill(again, 1)  # for the fixture to delete
