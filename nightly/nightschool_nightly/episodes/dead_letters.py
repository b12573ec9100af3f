"""Records that no night can read: counted, copied to the dead-letter topic, and too many of them stop the night.

A few are an accident, and the night goes on without them. Many mean that something else writes to the topic, or that
this version cannot read what another one wrote; then a night would learn from the rest as if it were the whole day.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nightschool import semconv
from nightschool.errors import NightError
from nightschool.stream import Record, StoredRecord, Stream
from nightschool_nightly.freeze.manifest import FrozenRange

MAX_SHARE = 0.001  # accidents are far fewer than one in a thousand, and a writer of another format makes far more
FEW = 10  # fewer say nothing about a share: one bad record in a day of fifty is not a broken writer


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Where an unreadable record is in the stream, and why it cannot be read."""

    topic: str
    partition: int
    offset: int
    reason: str

    @property
    def place(self) -> bytes:
        return f"{self.partition}/{self.offset}".encode()


class DeadLetters:
    """The unreadable records of one night. It holds places and not bytes, so that any number of them fits in memory."""

    def __init__(self) -> None:
        self._new: list[DeadLetter] = []
        self._first: DeadLetter | None = None
        self._dead = self._dead_here = self._read = 0

    def __len__(self) -> int:
        return self._dead

    def add(self, record: StoredRecord, reason: str, *, new: bool) -> None:
        """Add a record that cannot be read; an earlier night has already copied one that is not `new`."""
        letter = DeadLetter(record.topic, record.partition, record.offset, reason)
        self._dead += 1
        self._dead_here += 1
        self._first = self._first or letter
        if new:
            self._new.append(letter)

    def add_all(self, later: DeadLetters) -> None:
        """Add those of later ranges, which another process read."""
        self._dead += later._dead
        self._read += later._read
        self._first = self._first or later._first
        self._new += later._new

    def end_of(self, part: FrozenRange, num_read: int) -> None:
        """A partition was read to its end; `NightError` when not one of its `num_read` records could be read."""
        dead, self._dead_here = self._dead_here, 0
        self._read += num_read
        if dead == num_read and dead >= FEW:
            raise NightError(
                f"none of the {dead} records of topic {part.topic} partition {part.partition} can be read; {self._advice()}"
            )

    def check(self) -> None:
        """`NightError` when more than `MAX_SHARE` of the tenant's records are unreadable."""
        if self._dead >= FEW and self._dead > MAX_SHARE * self._read:
            raise NightError(f"{self._dead} of {self._read} records cannot be read, more than {MAX_SHARE:.1%}; {self._advice()}")

    def _advice(self) -> str:
        first = self._first
        assert first is not None
        where = f"topic {first.topic} partition {first.partition} offset {first.offset}: {first.reason}"
        return f"find out what else writes to the stream, nothing was changed. The first is {where}"

    def bury(self, stream: Stream) -> int:
        """Copy the new ones to the dead-letter topic, whole, with reason and place; the number of copies made.

        Each record is copied once, whichever night finds it first: several nights may read the same range.
        """
        buried = set(_places(stream)) if self._new else set()
        copied = 0
        for letter in self._new:
            if (letter.topic.encode(), letter.place) in buried:
                continue
            for record in stream.read(letter.topic, letter.partition, letter.offset, letter.offset + 1):
                added = {
                    semconv.HEADER_DLQ_REASON: letter.reason.encode(),
                    semconv.HEADER_DLQ_TOPIC: letter.topic.encode(),
                    semconv.HEADER_DLQ_PLACE: letter.place,
                }
                stream.append(semconv.TOPIC_DLQ, [Record(record.key, record.value, {**record.headers, **added})])
                copied += 1
        return copied


def _places(stream: Stream) -> Iterator[tuple[bytes, bytes]]:
    """Topic and place of every dead letter in the dead-letter topic."""
    starts = stream.start_offsets(semconv.TOPIC_DLQ)
    for partition, end in stream.end_offsets(semconv.TOPIC_DLQ).items():
        for record in stream.read(semconv.TOPIC_DLQ, partition, starts[partition], end):
            if (place := record.headers.get(semconv.HEADER_DLQ_PLACE)) is not None:
                yield record.headers.get(semconv.HEADER_DLQ_TOPIC, b""), place
