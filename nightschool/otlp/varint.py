"""Protobuf's variable-length numbers, for code that puts requests together out of parts that are serialized already."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(1 << 15)
def encode_varint(number: int) -> bytes:
    """`number`, 0 or more, as a varint of protobuf's encoding. Cached, because most are sizes and come often."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
