"""The limits that both Kafka clients share."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 8 << 20  # room for a record of MAX_RECORD_BYTES (stream/base.py) and what Kafka puts around it
CONNECT_TIMEOUT_MS = 5_000
# The official OTLP exporter gives a batch up after 10 s; a clear "try again" before that is better than an
# acknowledgement too late.
DELIVERY_TIMEOUT_MS = 9_000
REQUEST_TIMEOUT_MS = 5_000
RECONNECT_BACKOFF_MAX_MS = 1_000  # brokers that come back are found within a second
LINGER_MS = 5  # records that come within this time share a batch; an acknowledgement is later by no more than this
BATCH_BYTES = 512 << 10
