"""Redaction of a request item by item: an item with nothing to redact is neither decoded nor encoded again."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from threading import Lock

from nightschool.redaction.otlp import redact_refused_outcome, suspicious_places
from nightschool.redaction.redactor import Redactor
from nightschool_collector.store.checking import MESSAGE_BYTES, count_parts
from nightschool_collector.store.signals import Signal
from nightschool_collector.store.wire import Shared, frame_one, scopes

_NOTHING = Shared(b"", b"")
_ANYWHERE = (0, 1 << 61)
_NOWHERE = (1 << 62, 1 << 62)  # a place behind the end of every request
_SMALL_BYTES = 64 << 10  # the parts of what is smaller are not counted: as messages it has 3 MB at most
_REMEMBERED = 1024  # a tenant has a few resources and scopes for each app and version


class CleanFrames:
    """Which resources and scopes of a tenant hold nothing to redact: the same come with every request.

    Each is remembered by a hash of 16 bytes, because it may have any size. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._marks: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, mark: bytes) -> bool:
        with self._lock:
            if mark in self._marks:
                self._marks.move_to_end(mark)
                return True
            return False

    def add(self, mark: bytes) -> None:
        with self._lock:
            self._marks[mark] = None
            if len(self._marks) > _REMEMBERED:
                self._marks.popitem(last=False)


class Cleaning:
    """The redaction of one request by a tenant's rules; the items must be given in their order in the request."""

    def __init__(
        self,
        redactor: Redactor,
        signal: Signal,
        request: bytes,
        *,
        known: CleanFrames | None = None,
        room: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """`known` is shared by the requests of a tenant; `room` reserves memory beside that of the request itself."""
        self._redactor, self._signal, self._room = redactor, signal, room
        self._known = CleanFrames() if known is None else known
        places = suspicious_places(redactor, request)
        self._places = [*([_ANYWHERE] if places is None else places), _NOWHERE]
        self._at = 0
        self.next_place = self._places[0][0]
        """Where the next place begins that may hold something to redact, in bytes from the start of the request."""
        self.has_changed = False
        """Whether anything was redacted."""

    def frame(self, shared: Shared) -> Shared:
        """What items share, redacted."""
        mark = hashlib.blake2b(b"%d %b%b" % (len(shared.resource), *shared), digest_size=16).digest()
        if mark in self._known:
            return shared
        request = frame_one(shared, b"")
        if suspicious_places(self._redactor, request) == [] or (redacted := self._redacted(request)) is request:
            self._known.add(mark)
            return shared
        ((clean, _),) = scopes(redacted)
        self.has_changed = True
        return clean

    def item(self, item: bytes, start: int, end: int) -> bytes:
        """The item (a field on the wire), at bytes `start` to `end` of the request, redacted."""
        while self._places[self._at][1] <= start:  # the place is in what items share, or in an earlier item
            self._at += 1
        self.next_place = self._places[self._at][0]
        if self.next_place >= end:
            return item
        request = frame_one(_NOTHING, item)
        redacted = self._redacted(request)
        if redacted is request:
            return item
        self.has_changed = True
        return _only_item(redacted)

    def refused_outcome(self, item: bytes, reason: str) -> tuple[bytes, str]:
        """A log record that should be an outcome and is none, and the reason, which may quote it, redacted."""
        request = frame_one(_NOTHING, item)
        self._reserve(request)
        redacted = redact_refused_outcome(self._redactor, request)
        return _only_item(redacted), self._redactor.text(reason, Counter())

    def _redacted(self, request: bytes) -> bytes:
        self._reserve(request)
        return self._signal.redact(self._redactor, request, subjects=True)

    def _reserve(self, request: bytes) -> None:
        """Redacting takes as much memory as the messages of `request`."""
        if len(request) > _SMALL_BYTES:
            self._room(3 * len(request) + MESSAGE_BYTES * count_parts(request, self._signal.request))


def _only_item(request: bytes) -> bytes:
    ((_, ((tag, _, stop),)),) = scopes(request)
    return request[tag:stop]
