"""OTLP's `AnyValue` and `KeyValue`, to and from plain Python: the one place that says what each kind of value becomes.

Encoding: a text, a bool, a whole number of 64 bits and a float become the value of their kind; a list or tuple becomes
an array, item by item. For anything else (None, bytes, a mapping, an object) the caller says what to do: leave it out,
or write it as a text.

Decoding is total: an array becomes a list, a map a dict (of equal keys the last counts), bytes their lowercase hex
digits, and a value that holds nothing becomes None. Code that can use only a single text, number or bool asks for the
scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

AsText = Callable[[Any], str]
_SCALARS = ("string_value", "bool_value", "int_value", "double_value")


# --- encoding ---------------------------------------------------------------------------------------------------------
def key_values(attributes: Mapping[str, Any], *, unknown: AsText | None = None) -> list[KeyValue]:
    """`attributes` as OTLP has them, in their order; `unknown` as for `any_value`."""
    encoded = []
    for name, value in attributes.items():
        if (known := any_value(value, unknown)) is not None:
            encoded.append(KeyValue(key=name, value=known))
    return encoded


def any_value(value: Any, unknown: AsText | None = None) -> AnyValue | None:
    """`value` as OTLP has it; None for what it has no kind for, unless `unknown` makes a text of that.

    The same is true of each item of a list; an item that is None is left out. `ValueError` for a whole number of more
    than 64 bits.
    """
    if isinstance(value, str):  # first, because nearly all values are texts
        return AnyValue(string_value=value)
    if isinstance(value, bool):  # before int, which every bool also is
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, (list, tuple)):
        items = [any_value(item, unknown) for item in value]
        return AnyValue(array_value=ArrayValue(values=[item for item in items if item is not None]))
    return None if unknown is None else AnyValue(string_value=unknown(value))


# --- decoding ---------------------------------------------------------------------------------------------------------
def attributes_of(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """OTLP attributes as plain Python; of equal keys the last counts."""
    return {item.key: value_of(item.value) for item in attributes}


def value_of(value: AnyValue) -> Any:
    """`value` as plain Python."""
    match value.WhichOneof("value"):
        case "string_value":  # first, because nearly all values are texts
            return value.string_value
        case "array_value":
            return [value_of(item) for item in value.array_value.values]
        case "kvlist_value":
            return attributes_of(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case None:
            return None
        case kind:
            return getattr(value, kind)


def scalar_of(value: AnyValue) -> str | bool | int | float | None:
    """A text, a bool or a number as plain Python; None for an array, a map, bytes and for nothing."""
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind in _SCALARS else None
