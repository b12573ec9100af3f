"""What a body holds is counted in its bytes, while they are decompressed and before anything is built of them.

A body may be small and hold very much: an empty span has two bytes on the wire and costs several hundred as an object.
So a request is bounded in what it holds as well as in bytes, and what it holds takes its share of the admission.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from nightschool_collector.request.refusal import TOO_LARGE, RefusedError

# Spans or log records of one request, their resources and scopes among them: eight times the largest batch that the
# official collector makes by default (8,192), and a hundred times that of the SDKs (512).
MAX_ITEMS = 65_536
# Everything that becomes an object: attributes, values, events, links, elements of arrays. A batch of 8,192 spans of
# 18 attributes has 330,000. As protobuf messages so many are 80 MB at most, as JSON objects about as much.
MAX_PARTS = 1_048_576
# What one item costs beside its bytes until it is stored: its place, its key, its slice of the request and its record.
ITEM_BYTES = 512


class BodyCount(ABC):
    """Counts what the body of one request holds, piece by piece; `RefusedError` (413) once that is too much."""

    @abstractmethod
    def add(self, piece: bytes) -> None:
        """Count one more piece of the body, of any length."""

    @abstractmethod
    def finish(self) -> None:
        """The body is complete; `RecordError` if it stops in the middle of something."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """About how much memory what was counted takes, beside the body itself."""


class NoCount(BodyCount):
    """Counts nothing: for a body that is bounded by its bytes alone."""

    def add(self, piece: bytes) -> None: ...

    def finish(self) -> None: ...

    @property
    def num_bytes(self) -> int:
        return 0


def too_many(what: str, limit: int) -> RefusedError:
    """The refusal of a request that holds more than `limit` of `what`."""
    return RefusedError(
        TOO_LARGE, f"the request has more than {limit:,} {what}, as many as are allowed: send smaller batches", reason="too_many"
    )
