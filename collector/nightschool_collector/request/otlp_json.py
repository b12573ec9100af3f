"""OTLP/JSON to protobuf messages.

It is protobuf's JSON mapping with one exception: trace and span ids are hexadecimal, where the mapping has base64. Hex
digits are base64 digits too, so ids read by the mapping alone would become other ids without an error.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from nightschool.errors import RecordError, shown
from nightschool_collector.request.turns import STEP_ITEMS, in_steps

M = TypeVar("M", bound=Message)
_IDS = ("traceId", "trace_id", "spanId", "span_id", "parentSpanId", "parent_span_id")
_ITEMS = ("spans", "logRecords", "log_records")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
MAX_DEPTH = 100  # the limit of protobuf's own parser


def parse_json(body: bytes, message: M) -> M:
    """Fill `message` from an OTLP/JSON body; unknown fields are ignored, as the specification asks."""
    try:
        data = json.loads(body.decode("utf-8"))
        if _ESCAPED_SURROGATE.search(body):
            json.dumps(data, ensure_ascii=False).encode("utf-8")  # a lone one is not text, and protobuf crashes on it
        if not isinstance(data, dict):
            raise RecordError(f"an OTLP/JSON request is an object, got {shown(data)}")
        _let_others_pass(data)
        for item in _items_with_ids(data):
            _ids_from_hex(item)
        return json_format.ParseDict(data, message, ignore_unknown_fields=True, max_recursion_depth=MAX_DEPTH)
    except RecursionError:
        raise RecordError("the body is not valid OTLP/JSON: it is nested too deep") from None
    except (json_format.ParseError, ValueError, OverflowError) as error:  # OverflowError: an enum of 1e999
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"the body is not valid OTLP/JSON: {error}") from None


def _items_with_ids(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every span, span link and log record."""
    for scope in _scopes(request):
        for item in _objects(scope, *_ITEMS):
            yield item
            yield from _objects(item, "links")


def _scopes(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in _objects(request, "resourceSpans", "resource_spans", "resourceLogs", "resource_logs"):
        yield from _objects(resource, "scopeSpans", "scope_spans", "scopeLogs", "scope_logs")


class _InSteps(list[Any]):
    """Items; small requests may pass while somebody goes through them, which for a large request takes seconds."""

    def __iter__(self) -> Iterator[Any]:
        return in_steps(super().__iter__(), STEP_ITEMS)


def _let_others_pass(request: dict[str, Any]) -> None:
    for scope in _scopes(request):
        for name in _ITEMS:
            if isinstance(items := scope.get(name), list):
                scope[name] = _InSteps(items)


def _objects(parent: dict[str, Any], *names: str) -> Iterator[dict[str, Any]]:
    for name in names:
        children = parent.get(name)
        if isinstance(children, list):
            yield from (child for child in children if isinstance(child, dict))


def _ids_from_hex(item: dict[str, Any]) -> None:
    for name in _IDS:
        if isinstance(text := item.get(name), str):
            try:
                item[name] = base64.b64encode(binascii.unhexlify(text)).decode("ascii")
            except ValueError:
                raise RecordError(f"{name} is {shown(text)}; it must be hexadecimal digits") from None
