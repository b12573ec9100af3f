"""Follows the stream from its present end on, and keeps the records that belong to the marked request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from nightschool.stream import StoredRecord, Stream

_LOOK_EVERY_S = 0.2  # short against the seconds that a collector takes, long against one look at the stream


class Follower:
    """The records of some topics that were appended after it was made and that hold one of the marks."""

    def __init__(self, stream: Stream, topics: Sequence[str]) -> None:
        self.stream, self._topics = stream, topics
        # A topic that does not exist yet has no entry here and is read from its first record on.
        self._next = {(topic, number): end for topic in topics for number, end in stream.end_offsets(topic).items()}
        self.found: list[StoredRecord] = []

    def wait(self, marks: Iterable[str], is_there: Callable[[Sequence[StoredRecord]], bool], *, timeout_s: float) -> bool:
        """Read on until `is_there` is true of what was found; False when it is not within `timeout_s` seconds.

        A record is found when its key or value holds one of `marks` (ids, in ASCII).
        """
        wanted, deadline = [mark.encode() for mark in marks], time.monotonic() + timeout_s
        while True:
            known = {(record.topic, record.partition, record.offset) for record in self.found}
            for record in self._appended():
                is_new = (record.topic, record.partition, record.offset) not in known
                if is_new and any(mark in record.key or mark in record.value for mark in wanted):
                    self.found.append(record)
            if is_there(self.found):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_EVERY_S)

    def _appended(self) -> Iterator[StoredRecord]:
        for topic in self._topics:
            for partition, end in self.stream.end_offsets(topic).items():
                start = self._next.get((topic, partition), 0)
                if start < end:
                    yield from self.stream.read(topic, partition, start, end)
                    self._next[topic, partition] = end

    def of(self, topic: str) -> list[StoredRecord]:
        """What was found in one topic."""
        return [record for record in self.found if record.topic == topic]
