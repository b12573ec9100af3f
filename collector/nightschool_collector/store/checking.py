"""Checking an OTLP request with protobuf's own parser, in pieces: it is never in memory as messages as a whole.

A message takes up to 40 times the bytes it was encoded in, and one request may have 64 MiB. Only one piece is parsed at
a time in the process, which costs nothing: the parser does not share the interpreter anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Any

from google.protobuf.message import DecodeError, Message

from nightschool.errors import RecordError
from nightschool_collector.request.body_count import MAX_PARTS, too_many
from nightschool_collector.request.protobuf_count import read_head
from nightschool_collector.request.turns import give_way, in_steps
from nightschool_collector.store.wire import in_frames

_PIECE_BYTES = 64 << 10  # parsed at once: 3 MiB at most as messages; most requests are one piece
_FRAMES = (1, 2)  # the numbers of the fields inside which a larger request is cut: resource_x, scope_x
_MAX_DEPTH = 100  # protobuf's own limit
_BYTES, _GROUPS = 2, (3, 4)
# A message of less than 32 bytes has a length byte below 32. Those that texts have too (tab, line feed, carriage return)
# are left out, so some messages of 9, 10 and 13 bytes are not seen: these are not what makes a request heavy.
_NOT_LENGTHS = bytes(byte for byte in range(256) if byte > 31 or byte in (9, 10, 13))
_STEP_PARTS = 4096  # counted in a millisecond or two
MESSAGE_BYTES = 80  # of one message without its texts, at most: a span link with its place in a list takes 76
_parsing = Lock()

Children = dict[int, Any]
"""The fields of a message that are messages, by number, and the same of each."""


def check(request: bytes, kind: type[Message]) -> None:
    """`RecordError` if `request` is no valid message of `kind`; `RefusedError` (413) if it has more than `MAX_PARTS`.

    Its frames must have been counted (`ProtobufCount`).
    """
    # The messages that are not small have 34 bytes and more, tag and length counted.
    if _most_small(request) + len(request) // 34 > MAX_PARTS and count_parts(request, kind) > MAX_PARTS:
        raise too_many("attributes, values, events and links", MAX_PARTS)
    for depth, start, end in in_steps(_pieces(request, 0, len(request), 0)):
        piece = in_frames(request[start:end], depth)
        try:
            with _parsing:
                kind.FromString(piece)
        except DecodeError as error:
            raise RecordError(f"the body is not a valid protobuf {kind.DESCRIPTOR.name}: {error}") from None


def _pieces(data: bytes, start: int, end: int, depth: int) -> Iterator[tuple[int, int, int]]:
    """Runs of whole fields, with the number of frames around them: as many fields together as a piece may have."""
    first = at = start
    if end - start > _PIECE_BYTES:
        while at < end:
            tag = at
            number, kind, inner, at = read_head(data, tag)
            if kind in _GROUPS:
                raise RecordError("the body holds a group, which OTLP never has: leave it out")
            if at - first > _PIECE_BYTES:
                if first < tag:
                    yield depth, first, tag
                first = tag
                if at - tag > _PIECE_BYTES and depth < len(_FRAMES) and (number, kind) == (_FRAMES[depth], _BYTES):
                    yield from _pieces(data, inner, at, depth + 1)
                    first = at
    if first < end:
        yield depth, first, end


def _most_small(request: bytes) -> int:
    """No fewer than the messages of less than 32 bytes (but see `_NOT_LENGTHS`), found by what could be their length."""
    pieces = (request[at : at + _PIECE_BYTES] for at in range(0, len(request), _PIECE_BYTES))
    return min(sum(len(piece.translate(None, _NOT_LENGTHS)) for piece in in_steps(pieces)), len(request) // 2)


def count_parts(request: bytes, of: type[Message], *, enough: int = MAX_PARTS) -> int:
    """How many messages `request`, a message of the kind `of`, holds at every depth; counting ends past `enough`.

    `RecordError` for what is nested too deep; other faults are left to the parser.
    """
    num_parts, at, end, kinds = 0, 0, len(request), _children_of(of.DESCRIPTOR)
    around: list[tuple[int, Children]] = []
    while at < end:
        tag = request[at]
        try:
            if tag & 0x87 == _BYTES and request[at + 1] < 0x80:  # nearly always: this branch reads the head without a call
                inner = at + 2
                number, kind, stop = tag >> 3, _BYTES, inner + request[at + 1]
            else:
                number, kind, inner, stop = read_head(request, at)
        except IndexError:
            break
        if kind == _BYTES and number in kinds and stop <= end:
            num_parts += 1
            if num_parts % _STEP_PARTS == 0:
                give_way()
            if num_parts > enough:
                break
            if len(around) == _MAX_DEPTH:
                raise RecordError("the body is not a valid protobuf message: it is nested too deep")
            around.append((end, kinds))
            at, end, kinds = inner, stop, kinds[number]
        else:
            at = stop
        while around and at >= end:
            end, kinds = around.pop()
    return num_parts


def _children_of(kind: Any, known: dict[str, Children] | None = None) -> Children:
    """The fields of `kind`, a descriptor, that hold messages; a kind inside itself is the same object again."""
    known = {} if known is None else known
    if kind.full_name not in known:
        known[kind.full_name] = found = {}
        for field in kind.fields:
            if field.message_type is not None:
                found[field.number] = _children_of(field.message_type, known)
    return known[kind.full_name]
