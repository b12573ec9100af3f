"""What one visit of the doctor knows so far; each hop adds to it what the hops after it need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nightschool import semconv as names
from nightschool.config.settings import Config
from nightschool.episode import Episode
from nightschool.sdk.client import Client
from nightschool.stream import StoredRecord
from nightschool_nightly.dialects.record import SpanRow, read_spans
from nightschool_nightly.doctor.ask import Answer
from nightschool_nightly.doctor.follow import Follower
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.rewards.rubric import Rubric

CONNECT_TIMEOUT_S = 5.0
"""How long a collector may take to answer a request that makes no work."""
ANSWER_TIMEOUT_S = 60.0
"""How long a small model may take for a few words on a busy CPU."""
FLUSH_TIMEOUT_S = 10.0
"""How long the tracer may take to have its few records acknowledged."""
QUESTION = "This is nightschool doctor's marked request. Reply with one word."
USER, CONVERSATION, RATER = "nightschool-doctor", "nightschool-doctor", "nightschool-doctor"


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    config: Path
    tenant: str | None
    """None for the only tenant there is."""
    key: str | None
    collector: str | None
    """None for the one that the configuration describes."""
    serving: str | None
    wait_s: float = 15.0
    """The longest wait for a record to appear in the stream."""


@dataclass(slots=True)
class Visit:
    """Everything found on the way: what one hop sets, later hops use. A hop runs only after those that it needs."""

    options: Options
    closing: ExitStack
    config: Config = field(init=False)
    tenant: str = field(init=False)
    rubrics: Mapping[str, Rubric] = field(init=False)
    key: str = field(init=False)
    follower: Follower = field(init=False)
    client: Client = field(init=False)
    trace_id: str = field(init=False)
    answer: Answer = field(init=False)
    """What serving answered to the marked request."""
    answer_text: str = ""
    """The text of that answer."""
    response_id: str | None = None
    outcome_ids: Mapping[str, str] = field(init=False)
    """The event id of each outcome that is sent, by its name."""
    manifest: NightManifest = field(init=False)
    """The manifest of a night that reads the marked request and nothing else."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What the episode builder left out, by reason."""
    episode: Episode = field(init=False)
    sent_ms: int = field(init=False)
    acknowledged_ms: int = field(init=False)
    asked_ns: tuple[int, int] = field(init=False)
    """When serving was asked, and when the answer was there."""

    @property
    def collector(self) -> str:
        listens = self.config.collector
        return self.options.collector or f"http://{_reachable(listens.host)}:{listens.port}"

    @property
    def serving(self) -> str:
        listens = self.config.serving
        return self.options.serving or f"http://{_reachable(listens.host)}:{listens.port}"

    @property
    def marks(self) -> list[str]:
        """The ids by which records of the marked request are known."""
        return [self.trace_id, *([self.response_id] if self.response_id else []), *self.outcome_ids.values()]

    @property
    def final_text(self) -> str:
        """The text that the outcomes hold; an empty one would not be an outcome."""
        return self.answer_text or "-"

    def calls(self, side: str, records: Sequence[StoredRecord] | None = None) -> list[tuple[StoredRecord, SpanRow]]:
        """The model calls of the marked request that `side` ("app" or "server") recorded."""
        found = self.follower.of(names.TOPIC_SPANS) if records is None else records
        rows = [(record, row) for record in found if record.topic == names.TOPIC_SPANS for row in read_spans(record.value)]
        return [(record, row) for record, row in rows if row.is_model_call and row.side == side and self._is_ours(row)]

    def _is_ours(self, row: SpanRow) -> bool:
        return row.trace_id == self.trace_id or (row.response_id is not None and row.response_id == self.response_id)

    def choice(self) -> Mapping[str, Any] | None:
        """The first choice of serving's answer; None when it is not a chat completion."""
        body = self.answer.json()
        choices = body.get("choices") if isinstance(body, dict) else None
        return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _reachable(host: str) -> str:
    """An address to connect to; a server that listens on every address is on this machine."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
