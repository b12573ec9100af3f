"""OTLP values as plain Python, and the few questions that every dialect asks of them."""

from __future__ import annotations

import json
import math
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def text_of(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def attributes_of(attributes: Any) -> dict[str, Any]:
    """OTLP attributes as plain Python."""
    return {item.key: _plain(item.value) for item in attributes}


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_plain(item) for item in value.array_value.values]
        case "kvlist_value":
            pairs: Any = value.kvlist_value.values
            return {item.key: _plain(item.value) for item in pairs if isinstance(item, KeyValue)}
        case "bytes_value":
            return value.bytes_value.hex()
        case None:
            return None
        case kind:
            return getattr(value, kind)


def structured(value: Any) -> Any:
    """The value that JSON text means, None when it means none; what is structured already as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
