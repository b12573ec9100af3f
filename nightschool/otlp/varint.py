"""Protobuf's base-128 numbers, for the places that put requests together out of parts already serialised."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(1 << 15)
def encode_varint(number: int) -> bytes:
    """`number`, 0 or more, as a varint (protobuf encoding specification): sizes mostly, and the same ones again and again."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
