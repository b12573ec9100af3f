"""How each Kafka topic is to be set up, and where a real one differs. Plain data: no Kafka client is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nightschool import semconv
from nightschool.stream.kafka_limits import MAX_MESSAGE_BYTES

REPLICAS = 3  # with two of them in sync, one broker may fail and nothing stops
_DAY_MS = 24 * 3600 * 1000
OUTCOME_WINDOW_MS = 30 * _DAY_MS
MARGIN_MS = 2 * _DAY_MS  # a night may be late, and what it needs must still be there
OUTCOME_DAYS, DEAD_LETTER_DAYS = 90, 14  # outcomes are few; a person looks at dead letters within two weeks
_COMPACTED = ("erasure", "manifests")
_TOMBSTONE_DAYS = 7  # so that a slow reader still sees that something was deleted
_DEAD_LETTER_PARTITIONS = 3  # dead letters are rare

TOPICS = (
    semconv.TOPIC_SPANS,
    semconv.TOPIC_LOGS,
    semconv.TOPIC_OUTCOMES,
    semconv.TOPIC_ERASURE,
    semconv.TOPIC_DLQ,
    semconv.TOPIC_MANIFESTS,
)


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """How a topic is to be set up."""

    topic: str
    partitions: int
    replicas: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicState:
    """How a topic is set up."""

    partitions: int
    replicas: int
    """Copies of the partition that has the fewest."""
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing about a topic that is not as planned."""

    topic: str
    what: str
    found: str
    planned: str
    repair: str
    """The command that repairs it, for a shell in which Kafka's own tools are."""


def plan_of(topic: str, *, partitions: int, brokers: int, window_ms: int = OUTCOME_WINDOW_MS) -> TopicPlan:
    """The plan of `topic` in a cluster of `brokers`; `partitions` is for the topics whose keys are trace ids.

    Spans are kept longer than outcomes may take to come. Outcomes are never compacted, because corrections are history.
    """
    kind = topic.rpartition(".")[2]
    settings = {
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(MAX_MESSAGE_BYTES),
        "compression.type": "zstd",
        "min.insync.replicas": "2" if brokers >= REPLICAS else "1",
    }
    if kind in _COMPACTED:
        settings |= {"cleanup.policy": "compact", "delete.retention.ms": str(_TOMBSTONE_DAYS * _DAY_MS)}
    else:
        needed = window_ms + MARGIN_MS
        kept = {"outcomes": max(OUTCOME_DAYS * _DAY_MS, needed), "dlq": DEAD_LETTER_DAYS * _DAY_MS}
        settings |= {"cleanup.policy": "delete", "retention.ms": str(kept.get(kind, needed))}
    count = 1 if kind in _COMPACTED else min(partitions, _DEAD_LETTER_PARTITIONS) if kind == "dlq" else partitions
    return TopicPlan(topic, count, min(REPLICAS, brokers), settings)


def differences(plan: TopicPlan, state: TopicState | None, *, bootstrap: str) -> Iterator[Difference]:
    """Where `state` is not as planned; more copies, more partitions and a longer time are no difference."""
    if state is None:
        yield Difference(plan.topic, "topic", "missing", f"{plan.partitions} partitions", "nightschool topics --create")
        return
    if state.partitions < plan.partitions:
        repair = f"kafka-topics.sh --bootstrap-server {bootstrap} --alter --topic {plan.topic} --partitions {plan.partitions}"
        yield Difference(plan.topic, "partitions", str(state.partitions), str(plan.partitions), repair)
    if state.replicas < plan.replicas:
        repair = f"kafka-reassign-partitions.sh --bootstrap-server {bootstrap} --execute --reassignment-json-file PLAN.json"
        yield Difference(plan.topic, "replicas", str(state.replicas), str(plan.replicas), repair)
    for name, planned in sorted(plan.settings.items()):
        found = state.settings.get(name, "unknown")
        if not _suffices(name, found, planned):
            change = f"--alter --entity-type topics --entity-name {plan.topic} --add-config {name}={planned}"
            yield Difference(
                plan.topic,
                name,
                _shown(name, found),
                _shown(name, planned),
                f"kafka-configs.sh --bootstrap-server {bootstrap} {change}",
            )


def _suffices(name: str, found: str, planned: str) -> bool:
    if name in ("max.message.bytes", "min.insync.replicas"):
        return found.isdecimal() and int(found) >= int(planned)
    if name in ("retention.ms", "delete.retention.ms"):
        return found == "-1" or (found.isdecimal() and int(found) >= int(planned))
    return found == planned


def _shown(name: str, value: str) -> str:
    """A value as people read it: milliseconds as days."""
    if not name.endswith("retention.ms") or not value.isdecimal():
        return value
    return f"{int(value) / _DAY_MS:.3g} days"
