"""Redaction of a request of spans, span by span: what holds nothing to redact is neither decoded nor written anew."""

from __future__ import annotations

from functools import lru_cache

from nightschool.redaction.otlp import redact_traces, suspicious_places
from nightschool.redaction.redactor import Redactor
from nightschool_collector.store.wire import Shared, frame_one, scopes

_NOTHING = Shared(b"", b"")
_NOWHERE = (1 << 62, 1 << 62)


class Cleaning:
    """One request on its way through a tenant's redactor; its spans must be asked for in order."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._places: list[tuple[int, int]] = []
        self._at = 0
        self.next_place = _NOWHERE[0]
        """Where the next place begins at which something may be found."""
        self.has_changed = False

    def start(self, request: bytes) -> bytes:
        """Look where something may be found; if only reading everything tells, the request is redacted here and now."""
        places = suspicious_places(self._redactor, request)
        if places is None:
            return redact_traces(self._redactor, request, subjects=True)
        self._places = [*places, _NOWHERE]
        self.next_place = self._places[0][0]
        return request

    def frame(self, shared: Shared) -> Shared:
        """What spans share, clean. The same resource comes with every request, so what is clean is remembered."""
        if _is_clean(self._redactor, shared):
            return shared
        ((clean, _),) = scopes(redact_traces(self._redactor, frame_one(shared, b""), subjects=True))
        self.has_changed = True
        return clean

    def item(self, span: bytes, start: int, end: int) -> bytes:
        """The span (a field on the wire) that stands there in the request, clean."""
        while self._places[self._at][1] <= start:  # in what spans share, or in a span before
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


@lru_cache(4096)
def _is_clean(redactor: Redactor, shared: Shared) -> bool:
    request = frame_one(shared, b"")
    return suspicious_places(redactor, request) == [] or redact_traces(redactor, request, subjects=True) is request
