"""Spans to stream records: each record has the spans of one trace, and the trace id as its key."""

from __future__ import annotations

from nightschool_collector.request.turns import STEP_ITEMS, in_steps
from nightschool_collector.store.cleaning import Cleaning
from nightschool_collector.store.splitting import MAX_ITEM_BYTES, SPLIT_BYTES, Splitter
from nightschool_collector.store.wire import Shared, fields, scopes

NO_TRACE, NO_SPAN = bytes(16), bytes(8)
_TRACE_ID, _SPAN_ID = 1, 2  # fields of a span


def split_spans(request: bytes, cleaning: Cleaning | None = None) -> Splitter:
    """The records of a checked protobuf request; the request itself if it has one trace and nothing to redact."""
    splitter = Splitter()
    for shared, spans in scopes(request):
        if cleaning is not None:
            shared = cleaning.frame(shared)
        for tag, start, end in in_steps(spans, STEP_ITEMS):
            # Every encoder that we know writes the ids first; spans of another order are read field by field.
            if request[start : start + 2] == b"\x0a\x10" and request[start + 18 : start + 20] == b"\x12\x08":
                trace_id, span_id = request[start + 2 : start + 18], request[start + 20 : start + 28]
            else:
                trace_id, span_id = _ids(request, start, end)
            span = request[tag:end]
            if cleaning is not None and cleaning.next_place < end:
                span = cleaning.item(span, tag, end)
            _put(splitter, trace_id, span_id, shared, span)
    keys = splitter.keys
    unchanged = cleaning is None or not cleaning.has_changed
    if len(keys) == 1 and not splitter.rejected and unchanged and len(request) <= SPLIT_BYTES:
        splitter.whole = request
    return splitter


def key_of(trace_id: bytes) -> bytes:
    """The key of what is rejected: its trace id as far as it has one."""
    return trace_id[: len(NO_TRACE)].hex().encode()


def _put(splitter: Splitter, trace_id: bytes, span_id: bytes, shared: Shared, span: bytes) -> None:
    """Add a span to the records, or reject it if it can never be used."""
    if len(trace_id) != len(NO_TRACE) or trace_id == NO_TRACE:
        kind, reason = "trace id", f"trace id {trace_id[:32].hex()!r} is not 16 bytes, or all zero"
    elif len(span_id) != len(NO_SPAN) or span_id == NO_SPAN:
        kind, reason = "span id", f"span id {span_id[:32].hex()!r} is not 8 bytes, or all zero"
    elif splitter.add(trace_id.hex().encode(), shared, span):
        return
    else:
        kind, reason = "size", f"span {span_id.hex()} has more than {MAX_ITEM_BYTES} bytes: shorten its attributes"
    splitter.reject(kind, reason, key_of(trace_id), shared, span)


def _ids(request: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    """Trace and span id of a span; of a repeated field the last counts, as in every protobuf library."""
    trace_id = span_id = b""
    for number, at, stop in fields(request, start, end):
        if number == _TRACE_ID:
            trace_id = request[at:stop]
        elif number == _SPAN_ID:
            span_id = request[at:stop]
    return trace_id, span_id
