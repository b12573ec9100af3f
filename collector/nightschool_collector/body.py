"""Reading a request's body within its limit, as sent and as decompressed."""

from __future__ import annotations

import zlib

from starlette.requests import Request

from nightschool_collector.refusal import BAD_REQUEST, TOO_LARGE, UNSUPPORTED, RefusedError

ENCODINGS = ("gzip", "identity")


async def read_body(request: Request, *, limit: int) -> bytes:
    """The body as sent; a longer one is refused by its declared length before reading, or as soon as it passes `limit`."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(f"{declared} bytes", limit)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(f"more than {limit} bytes", limit)
        chunks.append(chunk)
    return b"".join(chunks)


def decoded(body: bytes, encoding: str | None, *, limit: int) -> bytes:
    """The body without its Content-Encoding, never expanded past `limit`."""
    match (encoding or "identity").strip().lower():
        case "gzip":
            return _gunzip(body, limit)
        case "identity":
            return body
        case other:
            raise RefusedError(
                UNSUPPORTED,
                f"Content-Encoding is {other!r}; allowed are {' and '.join(ENCODINGS)}",
                headers={"accept-encoding": ", ".join(ENCODINGS)},
            )


def _gunzip(body: bytes, limit: int) -> bytes:
    """All members of a gzip file, as RFC 1952 allows several."""
    parts, size = [], 0
    while body:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            part = member.decompress(body, limit + 1 - size)
        except zlib.error as error:
            raise RefusedError(BAD_REQUEST, f"the body is not valid gzip: {error}") from None
        size += len(part)
        if size > limit:
            raise _too_large(f"more than {limit} bytes when decompressed", limit)
        if not member.eof:
            raise RefusedError(BAD_REQUEST, "the body is not valid gzip: it ends too early")
        parts.append(part)
        body = member.unused_data
    return b"".join(parts)


def _too_large(size: str, limit: int) -> RefusedError:
    return RefusedError(TOO_LARGE, f"the body has {size}; at most {limit} are allowed: send smaller batches")
