"""Redaction of a request of spans, span by span: a span with nothing to redact is neither decoded nor encoded again."""

from __future__ import annotations

from functools import lru_cache

from nightschool.redaction.otlp import redact_traces, suspicious_places
from nightschool.redaction.redactor import Redactor
from nightschool_collector.store.wire import Shared, frame_one, scopes

_NOTHING = Shared(b"", b"")
_NOWHERE = (1 << 62, 1 << 62)  # a place behind the end of every request


class Cleaning:
    """The redaction of one request by a tenant's rules; the spans must be given in their order in the request."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._places: list[tuple[int, int]] = []
        self._at = 0
        self.next_place = _NOWHERE[0]
        """Where the next place begins that may hold something to redact, in bytes from the start of the request."""
        self.has_changed = False
        """Whether anything was redacted."""

    def start(self, request: bytes) -> bytes:
        """Find the suspicious places; if that takes decoding everything, redact the whole request at once."""
        places = suspicious_places(self._redactor, request)
        if places is None:
            return redact_traces(self._redactor, request, subjects=True)
        self._places = [*places, _NOWHERE]
        self.next_place = self._places[0][0]
        return request

    def frame(self, shared: Shared) -> Shared:
        """What spans share, redacted. The same resource comes with every request, so clean ones are remembered."""
        if _is_clean(self._redactor, shared):
            return shared
        ((clean, _),) = scopes(redact_traces(self._redactor, frame_one(shared, b""), subjects=True))
        self.has_changed = True
        return clean

    def item(self, span: bytes, start: int, end: int) -> bytes:
        """The span (a field on the wire), at bytes `start` to `end` of the request, redacted."""
        while self._places[self._at][1] <= start:  # the place is in what spans share, or in an earlier span
            self._at += 1
        self.next_place = self._places[self._at][0]
        if self.next_place >= end:
            return span
        request = frame_one(_NOTHING, span)
        redacted = redact_traces(self._redactor, request, subjects=True)
        if redacted is request:
            return span
        self.has_changed = True
        ((_, ((tag, _, stop),)),) = scopes(redacted)
        return redacted[tag:stop]


@lru_cache(4096)  # a process sees a few resources and scopes for each app and version
def _is_clean(redactor: Redactor, shared: Shared) -> bool:
    request = frame_one(shared, b"")
    return suspicious_places(redactor, request) == [] or redact_traces(redactor, request, subjects=True) is request
