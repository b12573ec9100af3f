"""Decompressing a request's body within its limit."""

from __future__ import annotations

import zlib
from io import BytesIO

import zstandard

from nightschool_collector.request.admission import Hold
from nightschool_collector.request.body_count import BodyCount
from nightschool_collector.request.refusal import BAD_REQUEST, UNSUPPORTED, RefusedError, too_large

ENCODINGS = ("gzip", "zstd", "identity")
_STEP_BYTES = 1 << 18  # by how much a body is expanded before more memory is reserved for it
_ZSTD_WINDOW_BYTES = 8 << 20  # RFC 9659: what every decoder of Content-Encoding zstd must support, and need not exceed


def decompress(body: bytes, encoding: str | None, *, limit: int, hold: Hold, count: BodyCount) -> bytes:
    """`body` without its Content-Encoding; what it holds is counted on the way.

    `RefusedError` if it expands past `limit`, if `count` finds too much in it, or if `hold` refuses the memory that it
    and what it holds will take. No more is expanded then.
    """
    match (encoding or "identity").strip().lower():
        case "gzip":
            return _gunzip(body, _Expanded("gzip", limit, hold, count))
        case "zstd":
            return _unzstd(body, _Expanded("zstd", limit, hold, count))
        case "identity" | "":
            for start in range(0, len(body), _STEP_BYTES):
                count.add(body[start : start + _STEP_BYTES])
                hold(len(body) + count.num_bytes)
            count.finish()
            return body
        case other:
            raise RefusedError(
                UNSUPPORTED,
                f"Content-Encoding is {other!r}; allowed are {', '.join(ENCODINGS[:-1])} and {ENCODINGS[-1]}",
                headers={"accept-encoding": ", ".join(ENCODINGS)},
            )


def _gunzip(body: bytes, expanded: _Expanded) -> bytes:
    """All members of a gzip file, as RFC 1952 allows several."""
    while body:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while not member.eof:
            try:
                part = member.decompress(body, _STEP_BYTES)
            except zlib.error as error:
                raise expanded.broken(str(error)) from None
            expanded.add(part)
            body = member.unconsumed_tail
            if not part and not body and not member.eof:
                raise expanded.broken("it ends too early")
        body = member.unused_data
    return expanded.whole()


def _unzstd(body: bytes, expanded: _Expanded) -> bytes:
    """All frames of a zstd body, as RFC 8878 allows several."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(body, read_size=_STEP_BYTES, read_across_frames=True) as reader:
            while part := reader.read(_STEP_BYTES):
                expanded.add(part)
        complete = _zstd_is_complete(body)
    except zstandard.ZstdError as error:
        raise expanded.broken(str(error)) from None
    if not complete:
        raise expanded.broken("it ends too early")
    return expanded.whole()


def _zstd_is_complete(body: bytes) -> bool:
    """Whether each frame has its last block (RFC 8878, section 3.1.1): the reader accepts a frame that is cut short."""
    at = 0
    while at < len(body):
        head = body[at : at + 18]  # the longest frame header
        at += zstandard.frame_header_size(head)
        last = False
        while not last:
            block = int.from_bytes(body[at : at + 3], "little")
            repeated_byte = block >> 1 & 3 == 1
            last, at = bool(block & 1), at + 3 + (1 if repeated_byte else block >> 3)
            if at > len(body):
                return False
        at += 4 if zstandard.get_frame_parameters(head).has_checksum else 0
    return at == len(body)


class _Expanded:
    """The expanded part of a body, within its limit."""

    def __init__(self, encoding: str, limit: int, hold: Hold, count: BodyCount) -> None:
        self._encoding, self._limit, self._hold, self._count = encoding, limit, hold, count
        self._parts = BytesIO()  # in one piece from the start: to join 64 MiB would hold all other threads up
        self._size = 0

    def add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            raise too_large(f"more than {self._limit} bytes when decompressed", self._limit)
        self._count.add(part)
        self._hold(self._size + self._count.num_bytes)
        self._parts.write(part)

    def whole(self) -> bytes:
        self._count.finish()
        return self._parts.getvalue()

    def broken(self, why: str) -> RefusedError:
        return RefusedError(BAD_REQUEST, f"the body is not valid {self._encoding}: {why}")
