"""What other projects' packages really export goes through the collector without a change of meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nightschool import semconv as names
from nightschool_nightly.dialects.record import read_events, read_spans

GOLDENS = Path(__file__).parents[2] / "goldens"
DIALECTS = sorted(path.name for path in GOLDENS.iterdir() if path.name != "record")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_recorded_export_is_accepted_and_kept_whole(collector: Any, dialect: str) -> None:
    """Every request is acknowledged in full, and reads the same from the stream as from the request."""
    sent: dict[str, list[bytes]] = {"traces": [], "logs": []}
    for path in sorted((GOLDENS / dialect).glob("*.pb")):
        kind = path.name.split("-")[0]
        sent[kind].append(path.read_bytes())
        response = collector.post(f"/v1/{kind}", sent[kind][-1])
        assert (response.status_code, response.content) == (200, b"")
    stored = collector.stored(names.TOPIC_SPANS)
    assert all(len({row.trace_id for row in read_spans(record.value)}) == 1 for record in stored)
    for read, topic, bodies in ((read_spans, names.TOPIC_SPANS, sent["traces"]), (read_events, names.TOPIC_LOGS, sent["logs"])):
        rows = [repr(row) for record in collector.stored(topic) for row in read(record.value)]
        assert sorted(rows) == sorted(repr(row) for body in bodies for row in read(body))
