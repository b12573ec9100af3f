"""A stream whose records are redacted as they are read, where our own collector has not done it.

An official OpenTelemetry Collector stores what its apps send: texts as they are, users by their raw id. Read through
this stream, such a record is what our collector would have stored, so that both give the same episodes, and a user is
the same subject in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from nightschool import semconv
from nightschool.config.redactors import redactors
from nightschool.config.settings import Config
from nightschool.errors import RecordError
from nightschool.outcomes.record import from_log_record, to_logs_request
from nightschool.redaction.otlp import redact_logs, redact_traces
from nightschool.redaction.redactor import Redactor
from nightschool.stream import Offset, Record, StoredRecord, Stream


def redacted_for(tenant: str, stream: Stream, config: Config) -> Stream:
    """`stream` as a night of the tenant reads it: redacted, unless the configuration switches that off."""
    redactor = redactors(config).get(tenant)
    return RedactedStream(stream, redactor) if redactor else stream


class RedactedStream:
    """`stream`, redacted by the rules of one tenant when it is read. Everything but `read` is the stream's own."""

    def __init__(self, stream: Stream, redactor: Redactor) -> None:
        self._stream, self._redactor = stream, redactor

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[StoredRecord]:
        for record in self._stream.read(topic, partition, start, end):
            # Only our collector writes when it received a record; the header with the tenant may come from another one
            # too.
            is_done = semconv.HEADER_RECEIVED_MS in record.headers
            yield record if is_done else replace(record, value=self._redacted(topic, record.value))

    def _redacted(self, topic: str, value: bytes) -> bytes:
        if topic == semconv.TOPIC_SPANS:
            return redact_traces(self._redactor, value, subjects=True)
        if topic in (semconv.TOPIC_LOGS, semconv.TOPIC_OUTCOMES):
            return self._outcomes(redact_logs(self._redactor, value, subjects=True))
        return value

    def _outcomes(self, value: bytes) -> bytes:
        """Redact the outcomes among log records, field by field: an outcome knows which of its fields are text."""
        try:
            request = ExportLogsServiceRequest.FromString(value)
        except DecodeError:
            return value
        changed = False
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                for log in scope.log_records:
                    if log.event_name != semconv.GEN_AI_EVALUATION_RESULT:
                        continue
                    try:
                        outcome = from_log_record(log)
                        redacted = self._redactor.outcome(outcome)
                    except RecordError:
                        continue  # what reads the records next counts it as unreadable
                    if redacted is not outcome:
                        plain = to_logs_request(redacted, tenant="", received_ns=log.observed_time_unix_nano)
                        log.CopyFrom(plain.resource_logs[0].scope_logs[0].log_records[0])
                        changed = True
        return request.SerializeToString() if changed else value

    # --- the stream's own -----------------------------------------------------------------------------------------------
    @property
    def append_bytes(self) -> int:
        return self._stream.append_bytes

    def create_topic(self, topic: str, *, partitions: int) -> None:
        self._stream.create_topic(topic, partitions=partitions)

    def append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        return self._stream.append(topic, records)

    def start_offsets(self, topic: str) -> dict[int, int]:
        return self._stream.start_offsets(topic)

    def end_offsets(self, topic: str) -> dict[int, int]:
        return self._stream.end_offsets(topic)

    def topic_id(self, topic: str) -> str | None:
        return self._stream.topic_id(topic)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Self:
        self._stream.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.__exit__(kind, error, trace)
