"""Spans to stream records: one trace id a record, keyed by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from nightschool_collector.store.cleaning import Cleaning
from nightschool_collector.store.splitting import MAX_ITEM_BYTES, SPLIT_BYTES, Splitter
from nightschool_collector.store.wire import Shared, fields, frame_one, scopes

NO_TRACE, NO_SPAN = bytes(16), bytes(8)
_TRACE_ID, _SPAN_ID = 1, 2  # fields of a span


class Rejected(NamedTuple):
    """An item that can never be stored where it belongs."""

    reason: str
    key: bytes
    value: bytes
    """The item as it came, in a request of its own."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """What became of a request: the records (key and value), and what can never be stored."""

    records: list[tuple[bytes, bytes]]
    num_items: int
    """Spans or log records in `records`."""
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Of all values; more than the request had when its items share much."""
        return sum([len(value) for _, value in self.records])


def sort_spans(request: bytes, cleaning: Cleaning | None = None) -> Sorted:
    """The records of a checked protobuf request, stored unchanged when all of it is one trace and nothing had to be redacted."""
    if cleaning is not None:
        request = cleaning.start(request)
    splitter, rejected, num_spans = Splitter(), [], 0
    for shared, spans in scopes(request):
        if cleaning is not None:
            shared = cleaning.frame(shared)
        for tag, start, end in spans:
            # Every encoder that we know writes the ids first; any other order is read field by field.
            if request[start : start + 2] == b"\x0a\x10" and request[start + 18 : start + 20] == b"\x12\x08":
                trace_id, span_id = request[start + 2 : start + 18], request[start + 20 : start + 28]
            else:
                trace_id, span_id = _ids(request, start, end)
            span = request[tag:end]
            if cleaning is not None and cleaning.next_place < end:
                span = cleaning.item(span, tag, end)
            num_spans += 1
            fault = _fault(trace_id, span_id)
            if not fault and not splitter.add(trace_id.hex().encode(), shared, span):
                fault = f"span {span_id.hex()} has more than {MAX_ITEM_BYTES} bytes: shorten its attributes"
            if fault:
                rejected.append(reject(fault, trace_id, shared, span))
    keys = splitter.keys
    unchanged = cleaning is None or not cleaning.has_changed
    if len(keys) == 1 and not rejected and unchanged and len(request) <= SPLIT_BYTES:
        return Sorted([(keys[0], request)], num_spans)
    return Sorted(list(splitter.records()), num_spans - len(rejected), rejected)


def reject(reason: str, trace_id: bytes, shared: Shared, item: bytes) -> Rejected:
    return Rejected(reason, trace_id[: len(NO_TRACE)].hex().encode(), frame_one(shared, item))


def _ids(request: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    """Trace and span id of a span; the last wins, as in every protobuf library."""
    trace_id = span_id = b""
    for number, at, stop in fields(request, start, end):
        if number == _TRACE_ID:
            trace_id = request[at:stop]
        elif number == _SPAN_ID:
            span_id = request[at:stop]
    return trace_id, span_id


def _fault(trace_id: bytes, span_id: bytes) -> str:
    """Why a span of these ids can never be used; empty if it can."""
    if len(trace_id) != len(NO_TRACE) or trace_id == NO_TRACE:
        return f"trace id {trace_id[:32].hex()!r} is not 16 bytes, or all zero"
    if len(span_id) != len(NO_SPAN) or span_id == NO_SPAN:
        return f"span id {span_id[:32].hex()!r} is not 8 bytes, or all zero"
    return ""
