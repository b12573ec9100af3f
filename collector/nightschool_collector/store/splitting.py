"""Splitting a request into stream records, each with items of one key and no larger than a record may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from nightschool.stream import MAX_RECORD_BYTES
from nightschool_collector.store.wire import Shared, frame, frame_one

SPLIT_BYTES = 4 << 20  # a trace larger than this becomes several records of the same key
# One span or log record with its resource and scope; the rest of the record is for its key and headers.
MAX_ITEM_BYTES = MAX_RECORD_BYTES - 4096
# Of one request. A reason may quote what came; only somebody who wants to be quoted sends more different ones.
_MAX_REASONS = 20
_FRAME_BYTES = 12  # at most, around one item: two tags and two lengths

Records = Iterator[tuple[bytes, bytes]]
"""Keys and values. A value exists from when it is taken until the next one is."""


@dataclass(slots=True)
class Rejected:
    """Items of a request that can never be stored where they belong, all for one reason."""

    reason: str
    """Of the first of them, which may quote it."""
    key: bytes
    value: bytes
    """The first of them as it came, in a request of its own."""
    count: int = 1


class Splitter:
    """Collects the items of a request by key; gives back the records, and a sample of what was rejected."""

    def __init__(self, keyless: Callable[[bytes], bytes] = bytes) -> None:
        """`keyless` makes the key of a record whose items have none, out of its value."""
        self._keyless = keyless
        self._by_key: dict[bytes, list[tuple[Shared, bytes]]] = {}
        self._rejected: dict[str, Rejected] = {}
        self._num_bytes = 0
        """No less than the records have."""
        self.num_items = 0
        """Spans or log records that will be stored."""
        self.whole: bytes | None = None
        """The request as it came, where it is its only record."""

    @property
    def rejected(self) -> Mapping[str, Rejected]:
        """What was rejected, by kind of reason."""
        return self._rejected

    @property
    def num_rejected(self) -> int:
        return sum(rejected.count for rejected in self._rejected.values())

    @property
    def keys(self) -> list[bytes]:
        return list(self._by_key)

    def add(self, key: bytes, shared: Shared, item: bytes) -> bool:
        """Put `item` (a field on the wire) into a record of `key`; False if it is larger than any record may be."""
        size = len(item) + len(shared.resource) + len(shared.scope)
        if size > MAX_ITEM_BYTES:
            return False
        if key in self._by_key:
            self._by_key[key].append((shared, item))
        else:
            self._by_key[key] = [(shared, item)]
        self.num_items += 1
        self._num_bytes += size
        return True

    def reject(self, kind: str, reason: str, key: bytes, shared: Shared, item: bytes) -> None:
        """Count an item that is not stored; the first of each kind is kept, with the words for it."""
        if kind not in self._rejected and len(self._rejected) == _MAX_REASONS:
            kind = next(iter(self._rejected))
        if kind in self._rejected:
            self._rejected[kind].count += 1
        else:
            self._rejected[kind] = Rejected(reason, key, frame_one(shared, item))

    def num_bytes(self, enough: int) -> int:
        """How many bytes all records have; only if they might have more than `enough` are they counted one by one."""
        if self.whole is not None:
            return len(self.whole)
        most = self._num_bytes + self.num_items * _FRAME_BYTES
        if most <= enough:
            return most
        groups = (group for items in self._by_key.values() for groups in _cut(items) for group in groups)
        return sum(shared.size + sum(map(len, items)) + _FRAME_BYTES for shared, items in groups)

    def records(self) -> Records:
        """Every record, the items of a key in the order they came."""
        for key, items in self._by_key.items():
            if self.whole is not None:
                yield key, self.whole
            elif len(items) == 1:
                value = frame_one(*items[0])
                yield key or self._keyless(value), value
            else:
                for groups in _cut(items):
                    value = frame(groups)
                    yield key or self._keyless(value), value


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
