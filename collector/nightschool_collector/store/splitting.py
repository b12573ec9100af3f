"""Splitting a request into stream records, each with items of one key and no larger than a record may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from nightschool.stream import MAX_RECORD_BYTES
from nightschool_collector.store.wire import Shared, frame, frame_one

SPLIT_BYTES = 4 << 20  # a trace larger than this becomes several records of the same key
# One span or log record with its resource and scope; the rest of the record is for its key and headers.
MAX_ITEM_BYTES = MAX_RECORD_BYTES - 4096


class Rejected(NamedTuple):
    """An item that can never be stored where it belongs."""

    reason: str
    key: bytes
    value: bytes
    """The item as it came, in a request of its own."""


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """What became of a request: the records (key and value), and what can never be stored."""

    records: list[tuple[bytes, bytes]]
    num_items: int
    """Spans or log records in `records`."""
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Of all values; more than the request had when its items share much."""
        return sum([len(value) for _, value in self.records])


class Splitter:
    """Collects items by key and gives back the records."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, list[tuple[Shared, bytes]]] = {}

    def add(self, key: bytes, shared: Shared, item: bytes) -> bool:
        """Put `item` (a field on the wire) into a record of `key`; False if it is larger than any record may be."""
        if len(item) > MAX_ITEM_BYTES - shared.size:
            return False
        if key in self._by_key:
            self._by_key[key].append((shared, item))
        else:
            self._by_key[key] = [(shared, item)]
        return True

    @property
    def keys(self) -> list[bytes]:
        return list(self._by_key)

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Every record as key and value, the items of a key in the order they came."""
        for key, items in self._by_key.items():
            if len(items) == 1:
                yield key, frame_one(*items[0])
            else:
                for groups in _cut(items):
                    yield key, frame(groups)


def _cut(items: list[tuple[Shared, bytes]]) -> Iterator[list[tuple[Shared, list[bytes]]]]:
    """The items in groups of what they share, cut where a record would become too large."""
    groups: list[tuple[Shared, list[bytes]]] = []
    size = 0
    for shared, item in items:
        if groups and size + len(item) + shared.size > SPLIT_BYTES:
            yield groups
            groups, size = [], 0
        if groups and groups[-1][0] is shared:
            groups[-1][1].append(item)
            size += len(item)
        else:
            groups.append((shared, [item]))
            size += len(item) + shared.size
    yield groups
