"""The figures both Kafka clients share."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 8 << 20
CONNECT_TIMEOUT_MS = 5_000
# The official OTLP exporter gives a batch up after 10 s: a clear "try again" before that beats a late acknowledgement.
DELIVERY_TIMEOUT_MS = 9_000
REQUEST_TIMEOUT_MS = 5_000
LINGER_MS = 5
BATCH_BYTES = 512 << 10
