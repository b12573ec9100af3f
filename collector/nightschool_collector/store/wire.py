"""Finding the spans of an OTLP request in its bytes, without building a message for each.

Spans and log records have the same frame on the wire: request { resource_x = 1 }, resource_x { resource = 1,
scope_x = 2, schema_url = 3 }, scope_x { scope = 1, items = 2, schema_url = 3 }. An item is a slice of the request; what
it shares with its neighbors (the other fields of the two frames around it, unknown ones too) is two more slices. A
record is put together from these three, so that no field is lost and nothing is encoded again.

The bytes must have been checked by a protobuf parser: what is not a valid message ends here in an arbitrary error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nightschool.otlp.varint import encode_varint
from nightschool_collector.request.turns import STEP_ITEMS, give_way

_FRAME, _ITEM = b"\x0a", b"\x12"  # tags of fields 1 and 2, both of bytes
_BYTES_TYPE = 2


class GroupError(Exception):
    """The request holds a group: the one construct of protobuf that OTLP never uses and that says no length."""


class Shared(NamedTuple):
    """What the items of one scope have in common, as fields on the wire."""

    resource: bytes
    scope: bytes

    @property
    def size(self) -> int:
        return len(self.resource) + len(self.scope)


def scopes(request: bytes) -> Iterator[tuple[Shared, list[tuple[int, int, int]]]]:
    """Each scope of a request: what its items share, and the offsets (tag, content, end) of each item."""
    for number, start, end in fields(request, 0, len(request)):
        if number == 1:
            resource, found = _parts(request, start, end)
            for _, scope_start, scope_end in found:
                scope, items = _parts(request, scope_start, scope_end)
                yield Shared(resource, scope), items


def _parts(data: bytes, start: int, end: int) -> tuple[bytes, list[tuple[int, int, int]]]:
    """The items of a frame (field 2) as offsets, and its other fields as they are, in whatever order they come."""
    others, items, at = [], [], start
    while at < end:
        tag = at
        if data[at] == 0x12:  # nearly always, and once for every span: this branch decodes its length without a call
            size = data[at + 1]
            at += 2
            if size > 0x7F:
                following = data[at]
                at += 1
                size += (following << 7) - 0x80
                if following > 0x7F:
                    size, at = varint(data, tag + 1)
            items.append((tag, at, at + size))
            at += size
            if len(items) % STEP_ITEMS == 0:
                give_way()
        else:
            number, kind, at, stop = _field(data, at)
            if number == 2 and kind == _BYTES_TYPE:  # its tag is encoded in more bytes than needed
                items.append((tag, at, stop))
            else:
                others.append(data[tag:stop])
            at = stop
    return b"".join(others), items


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that hold bytes (text, messages, ids): number, where the value starts, where it ends."""
    while start < end:
        number, kind, at, start = _field(data, start)
        if kind == _BYTES_TYPE:
            yield number, at, start


def _field(data: bytes, start: int) -> tuple[int, int, int, int]:
    """Number, wire type, start and end of the value of the field at `start`."""
    tag, at = varint(data, start)
    number, kind = tag >> 3, tag & 7
    if kind == _BYTES_TYPE:
        size, at = varint(data, at)
        return number, kind, at, at + size
    if kind == 0:
        return number, kind, at, varint(data, at)[1]
    if kind in (1, 5):
        return number, kind, at, at + (8 if kind == 1 else 4)
    raise GroupError


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A base-128 number and where it ends; bits above 64 are dropped, as in every protobuf library."""
    number = shift = 0
    while data[at] > 0x7F:
        number |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return (number | data[at] << shift) & 0xFFFF_FFFF_FFFF_FFFF, at + 1


def frame_one(shared: Shared, item: bytes) -> bytes:
    """A request of one item (with its tag)."""
    resource, scope = shared
    inner = len(scope) + len(item)
    inner_size = encode_varint(inner)
    outer = len(resource) + 1 + len(inner_size) + inner
    return b"".join((_FRAME, encode_varint(outer), resource, _ITEM, inner_size, scope, item))


def frame(groups: Iterable[tuple[Shared, list[bytes]]]) -> bytes:
    """A request of several groups of items, each under what its items share."""
    return b"".join(frame_one(shared, b"".join(items)) for shared, items in groups)


def content_of(item: bytes) -> bytes:
    """An item without its tag and length."""
    return item[varint(item, varint(item, 0)[1])[1] :]


def in_frames(content: bytes, depth: int) -> bytes:
    """A request out of fields that were at that depth in one: 0 for its own, 1 for those of resource_x, 2 of scope_x."""
    for tag in (_ITEM, _FRAME)[2 - depth :]:
        content = b"".join((tag, encode_varint(len(content)), content))
    return content
