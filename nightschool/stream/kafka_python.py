"""What all our kafka-python clients have in common: their settings, the wait for a broker, and their errors as ours."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kafka.errors import KafkaError, MessageSizeTooLargeError

from nightschool.errors import StreamUnavailable
from nightschool.stream.kafka_connection import KafkaConnection
from nightschool.stream.kafka_limits import CONNECT_TIMEOUT_MS, RECONNECT_BACKOFF_MAX_MS, REQUEST_TIMEOUT_MS


def client_settings(connection: KafkaConnection) -> dict[str, Any]:
    """The settings that every client takes."""
    return {
        **connection.security.for_kafka_python(),
        "bootstrap_servers": list(connection.bootstrap),
        "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MAX_MS,
    }


def await_broker(bootstrap: Sequence[str]) -> None:
    """Return once one of the brokers listens, else raise `StreamUnavailable` with what each said.

    Asked before a client is made, because a client that finds no broker leaves its thread behind.
    """
    refusals = []
    for server in bootstrap:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_MS / 1000).close()
        except OSError as error:
            refusals.append(f"{server}: {error}")
        else:
            return
    raise StreamUnavailable(f"no Kafka broker can be reached, try again ({'; '.join(refusals)})")


@contextmanager
def kafka_errors(connection: KafkaConnection) -> Iterator[None]:
    """kafka-python's errors as ours: `RecordError` for a record that is too large, else `StreamUnavailable`."""
    try:
        yield
    except MessageSizeTooLargeError as error:
        raise connection.too_large(str(error)) from error
    except KafkaError as error:
        raise connection.unavailable(f"{type(error).__name__}: {error}") from error
