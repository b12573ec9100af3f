"""Splitting an OTLP request so that each stream record holds one trace.

Spans and log records have the same frame on the wire: request { resource_x = 1 }, resource_x { resource = 1, scope_x = 2,
schema_url = 3 }, scope_x { scope = 1, items = 2, schema_url = 3 }. A record is put together from serialised parts, since
copying messages costs several times as much, and a day's worst case is every span being its own trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import Message
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from nightschool.stream import MAX_RECORD_BYTES

SPLIT_BYTES = 4 << 20  # a trace larger than this becomes several records of the same key
MAX_ITEM_BYTES = MAX_RECORD_BYTES - 4096  # one span or log record with its resource and scope; the rest is for key and headers


class Shared(NamedTuple):
    """What the items of one scope have in common, serialised."""

    resource: bytes
    scope: bytes

    @property
    def size(self) -> int:
        return len(self.resource) + len(self.scope)


def shared_by(resource: ResourceSpans | ResourceLogs, scope: ScopeSpans | ScopeLogs) -> Shared:
    return Shared(_described(resource.resource, resource.schema_url), _described(scope.scope, scope.schema_url))


def _described(what: Message, schema_url: str) -> bytes:
    return _field(1, what.SerializeToString()) + (_field(3, schema_url.encode()) if schema_url else b"")


@dataclass(slots=True)
class _Open:
    """A record being filled: items grouped by what they share, in the order they came."""

    groups: list[tuple[Shared, list[bytes]]] = field(default_factory=list)
    size: int = 0


class Splitter:
    """Collects items by key and gives back the records."""

    def __init__(self) -> None:
        self._open: dict[bytes, _Open] = {}
        self._full: list[tuple[bytes, bytes]] = []

    def add(self, key: bytes, shared: Shared, item: Message) -> bool:
        """Put `item` into a record of `key`; False if it is larger than any record may be."""
        payload = _field(2, item.SerializeToString())
        size = len(payload) + shared.size
        if size > MAX_ITEM_BYTES:
            return False
        record = self._open.setdefault(key, _Open())
        if record.groups and record.size + size > SPLIT_BYTES:
            self._full.append((key, _assemble(record.groups)))
            record = self._open[key] = _Open()
        if record.groups and record.groups[-1][0] is shared:
            record.groups[-1][1].append(payload)
            record.size += len(payload)
        else:
            record.groups.append((shared, [payload]))
            record.size += size
        return True

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Every record as key and value."""
        yield from self._full
        for key, record in self._open.items():
            yield key, _assemble(record.groups)


def _assemble(groups: Iterable[tuple[Shared, list[bytes]]]) -> bytes:
    return b"".join(_field(1, shared.resource + _field(2, shared.scope + b"".join(items))) for shared, items in groups)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field; `number` is below 16, so that its tag is one byte."""
    length, size = bytearray(), len(payload)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes((number << 3 | 2, *length)) + payload
