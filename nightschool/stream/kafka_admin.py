"""What a Kafka cluster says about its topics, and creating them, through kafka-python's admin client."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

from kafka import IsolationLevel, KafkaAdminClient, OffsetSpec, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import InvalidTopicError, NodeNotReadyError, TopicAlreadyExistsError, UnknownTopicOrPartitionError

from nightschool.errors import StreamUnavailable
from nightschool.stream.kafka_connection import KafkaConnection
from nightschool.stream.kafka_limits import CONNECT_TIMEOUT_MS
from nightschool.stream.kafka_python import await_broker, client_settings, kafka_errors
from nightschool.stream.kafka_topics import TopicPlan, TopicState

_READY_POLL_S = 0.05


class KafkaAdmin:
    """Asks a cluster about its topics. Connects at the first question; threads may share one."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._lock = Lock()
        self._client: Any = None

    def num_brokers(self) -> int:
        """How many brokers the cluster has now."""
        with kafka_errors(self._connection):
            return len(self._ask(lambda admin: admin.describe_cluster())["brokers"])

    def create_topic(self, plan: TopicPlan) -> None:
        """Create a topic as planned and return once it can be used; one that exists stays as it is."""
        wanted = {
            "num_partitions": plan.partitions,
            "replication_factor": plan.replicas,
            "configs": dict(plan.settings),
        }
        with kafka_errors(self._connection):
            with suppress(TopicAlreadyExistsError):
                self._ask(lambda admin: admin.create_topics({plan.topic: wanted}))
            self._ask(lambda admin: admin.wait_for_topics([plan.topic], timeout_ms=CONNECT_TIMEOUT_MS))

    def describe(self, topic: str) -> dict[str, Any]:
        """The broker's description of `topic`; empty for an unknown topic."""
        with kafka_errors(self._connection):
            described: dict[str, Any] = self._ask(lambda admin: admin.describe_topics([topic])[0])
        if described["error_code"] in (UnknownTopicOrPartitionError.errno, InvalidTopicError.errno):
            return {}
        return described

    def topic_state(self, topic: str) -> TopicState | None:
        """How `topic` is set up now; None when it does not exist."""
        described = self.describe(topic)
        if not described:
            return None
        asked = [ConfigResource(ConfigResourceType.TOPIC, topic)]
        with kafka_errors(self._connection):
            answer = self._ask(lambda admin: admin.describe_configs(asked, config_filter="all"))
        settings = {name: str(entry["value"]) for name, entry in next(iter(answer.values()))[topic].items()}
        parts = described["partitions"]
        return TopicState(len(parts), min((len(part["replica_nodes"]) for part in parts), default=0), settings)

    def first_offsets(self, topic: str) -> dict[int, int]:
        """The first offset still held, per partition."""
        return self._offsets(topic, OffsetSpec.EARLIEST)

    def committed_offsets(self, topic: str) -> dict[int, int]:
        """Where committed records end, per partition, so that an open transaction is never part of a night."""
        return self._offsets(topic, OffsetSpec.LATEST)

    def _offsets(self, topic: str, spec: Any) -> dict[int, int]:
        wanted = {TopicPartition(topic, one["partition_index"]): spec for one in self.describe(topic).get("partitions", ())}
        if not wanted:
            return {}
        committed = IsolationLevel.READ_COMMITTED
        with kafka_errors(self._connection):
            found = self._ask(lambda admin: admin.list_partition_offsets(wanted, isolation_level=committed))
        return {at.partition: found[at].offset for at in sorted(wanted)}

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """Put one question at a time: the client does not queue them, it refuses one while it is busy or connecting."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_MS / 1000
        if not self._lock.acquire(timeout=CONNECT_TIMEOUT_MS / 1000):
            raise StreamUnavailable(f"Kafka at {self._connection} does not answer, try again")
        try:
            if self._client is None:
                await_broker(self._connection.bootstrap)
                self._client = KafkaAdminClient(**client_settings(self._connection))
            client = self._client
            while True:
                try:
                    return question(client)
                except NodeNotReadyError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_READY_POLL_S)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
