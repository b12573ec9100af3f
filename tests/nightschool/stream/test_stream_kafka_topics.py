"""`nightschool topics` on a real broker: what is missing, what differs, and commands that repair it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from nightschool import semconv
from nightschool.stream import open_stream, retention_warnings
from nightschool.stream.kafka import KafkaStream
from nightschool.stream.kafka_topics import TOPICS, TopicState, differences, plan_of
from nightschool.stream.sqlite import SqliteStream

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def broker(
    kafka_jars: Path, start_broker: Callable[..., AbstractContextManager[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A broker of its own: these are the real topic names."""
    with start_broker(kafka_jars, tmp_path_factory.mktemp("topics-kafka")) as running:
        yield running


def topics(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "nightschool.toml").write_text(f'[stream]\nurl = "{url}"\npartitions = 4\n')
    return subprocess.run([sys.executable, "-m", "nightschool", "topics", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.kafka
def test_topics_from_nothing_to_repaired(broker: Any, tmp_path: Path) -> None:
    """Missing topics are named and created; a setting that would lose records is shown with its repair."""
    url = f"kafka://{broker.bootstrap}"
    missing = topics(tmp_path, url, "--check")
    assert (missing.returncode, missing.stderr) == (1, "")
    assert all(f"{topic} " in missing.stdout for topic in TOPICS)
    created = topics(tmp_path, url, "--create", "--check")
    assert created.returncode == 0, created.stdout + created.stderr
    assert created.stdout.splitlines() == [
        *(f"created {topic}" for topic in TOPICS),
        "every topic is set up as a night needs it",
    ]

    alter = ["--bootstrap-server", broker.bootstrap, "--alter", "--entity-type", "topics", "--entity-name", semconv.TOPIC_SPANS]
    settings = f"retention.ms={7 * DAY_MS},message.timestamp.type=CreateTime"
    broker.tool("kafka.admin.ConfigCommand", *alter, "--add-config", settings)
    broken = topics(tmp_path, url, "--check")
    assert broken.returncode == 1
    rows = [line.split() for line in broken.stdout.splitlines() if line.startswith("ns.")]
    assert rows == [
        [semconv.TOPIC_SPANS, "message.timestamp.type", "CreateTime", "LogAppendTime"],
        [semconv.TOPIC_SPANS, "retention.ms", "7", "days", "32", "days"],
    ]
    with open_stream(url, partitions=4) as stream:
        (warning,) = retention_warnings(stream)
    assert "ns.otlp_spans may lose records before a night reads them: retention.ms is 7 days, it should be 32 days" in warning

    for line in broken.stdout.partition("To repair:\n")[2].splitlines():
        script, *rest = shlex.split(line)
        assert script == "kafka-configs.sh"
        broker.tool("kafka.admin.ConfigCommand", *rest)
    assert topics(tmp_path, url, "--check").returncode == 0


@pytest.mark.kafka
def test_the_collector_warns_of_short_retention(broker: Any, tmp_path: Path, unused_port: int) -> None:
    """Before it takes a record the collector names topics that lose records, also for a longer outcome window."""
    (tmp_path / "nightschool.toml").write_text(
        f'[stream]\nurl = "kafka://{broker.bootstrap}"\npartitions = 4\n[collector]\nport = {unused_port}\ngrpc_port = 0\n'
        f'[night]\noutcome_window = "60d"\n[tenants.acme]\nkey_sha256 = ["{"a" * 64}"]\n'
    )
    with open_stream(f"kafka://{broker.bootstrap}", partitions=4) as stream:
        for topic in TOPICS:
            stream.create_topic(topic, partitions=4)
    command = [sys.executable, "-m", "nightschool_collector"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        assert collector.stdout.readline().startswith("collecting on")
        collector.terminate()
        said = collector.communicate(timeout=30)[1].splitlines()
    warned = [line for line in said if "may lose records before a night reads them" in line]
    assert [line.split()[4] for line in warned] == [semconv.TOPIC_SPANS, semconv.TOPIC_LOGS]
    assert all("retention.ms is 32 days, it should be 62 days" in line for line in warned)


@pytest.mark.kafka
def test_created_topics_are_what_was_planned(broker: Any) -> None:
    """The broker holds every planned setting, the partitions and the copies."""
    with KafkaStream([broker.bootstrap], partitions=4) as stream:
        for topic in TOPICS:
            stream.create_topic(topic, partitions=4)
            plan, state = plan_of(topic, partitions=4, brokers=1), stream.topic_state(topic)
            assert state is not None
            assert (state.partitions, state.replicas) == (plan.partitions, plan.replicas)
            assert plan.settings.items() <= state.settings.items()
        assert stream.topic_state("ns.unknown") is None


def test_more_than_planned_is_no_difference() -> None:
    """Longer retention, more copies and more partitions are fine; less of any is a difference with its repair."""
    plan = plan_of("ns.otlp_spans", partitions=12, brokers=3)
    more = plan.settings | {"retention.ms": "-1", "max.message.bytes": str(64 << 20), "min.insync.replicas": "3"}
    assert not list(differences(plan, TopicState(24, 5, more), bootstrap="b:1"))
    less = plan.settings | {"retention.ms": str(31 * DAY_MS), "min.insync.replicas": "1"}
    found = {one.what: one for one in differences(plan, TopicState(6, 2, less), bootstrap="b:1")}
    assert {what: (one.found, one.planned) for what, one in found.items()} == {
        "partitions": ("6", "12"),
        "replicas": ("2", "3"),
        "retention.ms": ("31 days", "32 days"),
        "min.insync.replicas": ("1", "2"),
    }
    assert all("--bootstrap-server b:1 " in one.repair and one.repair.startswith("kafka-") for one in found.values())


def test_retention_follows_the_outcome_window() -> None:
    """Spans, logs and outcomes stay two days longer than an outcome may come."""
    kept = {
        topic: int(plan_of(topic, partitions=1, brokers=1, window_ms=100 * DAY_MS).settings["retention.ms"]) // DAY_MS
        for topic in (semconv.TOPIC_SPANS, semconv.TOPIC_LOGS, semconv.TOPIC_OUTCOMES)
    }
    assert set(kept.values()) == {102}


def test_a_sqlite_stream_has_no_topics_to_set_up(tmp_path: Path) -> None:
    """The command says so and succeeds; no record expires there, so there is no warning."""
    done = topics(tmp_path, "sqlite:stream.db", "--check", "--create")
    assert (done.returncode, done.stderr) == (0, "")
    assert "its topics need no settings" in done.stdout
    with SqliteStream(tmp_path / "stream.db", partitions=1) as stream:
        assert retention_warnings(stream) == []


def test_an_absent_cluster_is_one_line(tmp_path: Path, unused_port: int) -> None:
    """No broker: one line that says it may be tried again, exit status 2."""
    done = topics(tmp_path, f"kafka://127.0.0.1:{unused_port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nightschool topics: no Kafka broker can be reached, try again")
    assert done.stderr.count("\n") == 1
