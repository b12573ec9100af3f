"""What several hops look at in the same way."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping

from nightschool import semconv as names
from nightschool.sdk.export.delivery import Delivery, Reply
from nightschool.stream import StoredRecord
from nightschool_nightly.doctor.findings import BrokenHopError
from nightschool_nightly.doctor.visit import CONNECT_TIMEOUT_S, Visit


def check_tenant(visit: Visit, records: Iterable[StoredRecord]) -> None:
    """`BrokenHopError` when our collector filed one of `records` under another tenant."""
    for record in records:
        header = record.headers.get(names.HEADER_TENANT, visit.tenant.encode()).decode(errors="replace")
        if header != visit.tenant:
            raise BrokenHopError(
                f"the record of {record.topic} is filed under tenant {header!r}, not {visit.tenant!r}",
                f"the collector gives this key to {header!r}: start it with this nightschool.toml",
            )


def post_nothing(visit: Visit, key: str) -> Reply:
    """Send the collector a request with `key` and without spans: its answer tells what it thinks of the key."""
    delivery = Delivery(visit.collector, key, timeout_s=CONNECT_TIMEOUT_S)
    try:
        return delivery.post("/v1/traces", gzip.compress(b""), content_type="application/x-protobuf")
    finally:
        delivery.close()


def reply_text(reply: Reply) -> str:
    """Status and reason of a reply, or why there was none."""
    return f"{reply.status} {reply.reason}" if reply.status else reply.reason


def missing_of(arrived: Mapping[str, bool]) -> str:
    """The names of what did not arrive; empty when all of it did."""
    return ", ".join(name for name, is_there in arrived.items() if not is_there)
