"""Counting the items of an OTLP request on the wire: a walk over the frames around them that skips what is inside.

It also checks these frames, which nothing else does for a request that is too large to be parsed at once: each field
lies in the one around it, and the request ends where its last field does.
"""

from __future__ import annotations

from nightschool.errors import RecordError
from nightschool_collector.request.body_count import ITEM_BYTES, MAX_ITEMS, BodyCount, too_many
from nightschool_collector.request.turns import STEP_ITEMS, give_way, in_turn

_NUMBERS = (1, 2, 2)  # of the fields on the way to an item, by depth: resource_x = 1 { scope_x = 2 { items = 2 } }
_TAGS = (0x0A, 0x12, 0x12)  # the same with their kind, as they are nearly always encoded
_ITEM_DEPTH = 2
_MAX_HEAD_BYTES = 20  # of a field: its tag and its length, or its tag and its number, of ten bytes at most each
_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_MAX_GROUPS = 100  # inside each other: protobuf's own limit


class ProtobufCount(BodyCount):
    """The resources, scopes and items (spans, log records) of a request, which comes in pieces."""

    def __init__(self) -> None:
        self.num_items = 0
        self._ends: list[int] = []
        """Where the frames end that are open, the outermost first."""
        self._num_groups = 0
        """Groups that are open. OTLP has none, but a field that is not known may be one."""
        self._at, self._seen, self._rest = 0, 0, b""
        """Where the next field begins, how many bytes have come, and those of them from that field on."""

    @property
    def num_bytes(self) -> int:
        return self.num_items * ITEM_BYTES

    def add(self, piece: bytes) -> None:
        data, self._rest = self._rest + piece, b""
        start = self._seen + len(piece) - len(data)  # where `data` begins in the request
        self._seen += len(piece)
        with in_turn(len(data)):
            self._walk(data, start, len(data) - _MAX_HEAD_BYTES)
        self._rest = data[max(0, self._at - start) :]

    def finish(self) -> None:
        # Zeros behind the end let the last heads be read as the others are; where they are part of one, it is cut.
        start = self._seen - len(self._rest)
        self._walk(self._rest + bytes(_MAX_HEAD_BYTES), start, len(self._rest) - 1)
        if self._at != self._seen or any(end != self._seen for end in self._ends) or self._num_groups:
            raise _malformed("it ends too early")

    def _walk(self, data: bytes, start: int, last: int) -> None:
        """Walk over the fields that begin in `data` up to `last`; `start` is where `data` begins in the request."""
        at, ends = self._at - start, [end - start for end in self._ends]
        while True:
            while ends and at >= ends[-1]:
                if at > ends.pop() or self._num_groups:
                    raise _malformed("a field is longer than what it is in")
            if at > last:
                break
            depth = len(ends)
            if data[at] == _TAGS[depth] and data[at + 1] < 0x80 and not self._num_groups:
                is_counted, at = True, at + 2  # nearly always: this branch reads the head without a call
                stop = at + data[at - 1]
            else:
                number, kind, inner, stop = read_head(data, at)
                is_counted = kind == _BYTES and number == _NUMBERS[depth] and not self._num_groups
                at = inner if is_counted else at
                if kind in (_GROUP, _END_GROUP):
                    self._num_groups += 1 if kind == _GROUP else -1
                    if not 0 <= self._num_groups <= _MAX_GROUPS:
                        raise _malformed("its groups do not match")
            if is_counted:
                self.num_items += 1
                if self.num_items % STEP_ITEMS == 0:
                    give_way()
                if self.num_items > MAX_ITEMS:
                    raise too_many("spans or log records, their resources and scopes counted", MAX_ITEMS)
                if depth < _ITEM_DEPTH:
                    if ends and stop > ends[-1]:
                        raise _malformed("a field is longer than what it is in")
                    ends.append(stop)
                    continue
            at = stop
        self._at, self._ends = at + start, [end + start for end in ends]


def read_head(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Number and kind of the field at `at`, and where its value starts and ends; `RecordError` if there is none."""
    tag, at = _varint(data, at)
    number, kind = tag >> 3, tag & 7
    if kind == _BYTES:
        size, at = _varint(data, at)
        stop = at + size
    elif kind == _VARINT:
        stop = _varint(data, at)[1]
    elif kind in (_FIXED64, _FIXED32):
        stop = at + (8 if kind == _FIXED64 else 4)
    elif kind in (_GROUP, _END_GROUP):
        stop = at
    else:
        raise _malformed(f"it has a field of the unknown kind {kind}")
    if number == 0:
        raise _malformed("it has a field with the number 0")
    return number, kind, at, stop


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A base-128 number of at most ten bytes and where it ends."""
    number = shift = 0
    while (byte := data[at]) > 0x7F:
        number |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise _malformed("it has a number of more than ten bytes")
    return number | byte << shift, at + 1


def _malformed(why: str) -> RecordError:
    return RecordError(f"the body is not a valid protobuf message: {why}")
