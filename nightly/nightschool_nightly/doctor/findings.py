"""What the doctor found, hop by hop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Hop(StrEnum):
    """A part of the way of a request, in the order in which the request passes it."""

    CONFIGURATION = "configuration"
    """nightschool.toml, the tenant in it, and the tenant's rubrics."""
    KEY = "key"
    """The API key is one of the tenant's."""
    COLLECTOR = "collector"
    """It answers, and can use its stream."""
    AUTHENTICATION = "authentication"
    """It knows the key, and refuses another."""
    STREAM = "stream"
    """The configured stream can be read."""
    TRACER = "tracer"
    """The app's side records the marked request."""
    ACKNOWLEDGEMENT = "acknowledgement"
    """The collector says that the app's spans are durable."""
    RECORD = "record"
    """They are in the stream, under the tenant."""
    CONTENT = "content"
    """Messages, answer, task, user and conversation are in them."""
    SERVING = "serving"
    """The serving endpoint answers the request."""
    RELEASE = "release"
    """It says which release answered, and it is the registry's."""
    SERVER_SPAN = "server-span"
    """Serving's own span of the request is in the stream."""
    TOKENS = "tokens"
    """It holds what was sampled: token ids and log-probabilities."""
    OUTCOME = "outcome"
    """The collector says that the outcome is durable."""
    OUTCOME_RECORD = "outcome-record"
    """It is in the stream, under the tenant."""
    EPISODE = "episode"
    """The nights' episode builder makes one whole episode of all this."""
    JOIN = "join"
    """The server's tokens and release are joined to the app's call."""
    OUTCOME_JOIN = "outcome-join"
    """The outcome is joined to the episode."""
    SELECTION = "selection"
    """A night would learn from such an episode if it were the app's and not the doctor's."""
    CLOCKS = "clocks"
    """The clocks of app, collector, stream and serving agree."""


class Status(StrEnum):
    """What was found of a hop."""

    OK = "ok"
    BROKEN = "broken"
    NOT_CHECKED = "not-checked"
    """A hop that it needs is broken, so this one could not be checked."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found at one hop."""

    hop: Hop
    status: Status
    text: str
    """What was found."""
    fix: str = ""
    """What to do, where the hop is broken."""
    arrived: Mapping[str, bool] = field(default_factory=dict)
    """What should have arrived here, and whether it did."""


class BrokenHopError(Exception):
    """A hop is broken: `text` says what was found, `fix` what to do."""

    def __init__(self, text: str, fix: str, arrived: Mapping[str, bool] | None = None) -> None:
        super().__init__(text)
        self.text, self.fix, self.arrived = text, fix, arrived or {}


@dataclass(frozen=True, slots=True)
class Passed:
    """A hop is as it should be: `text` says what was found, `arrived` what came through."""

    text: str
    arrived: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of all hops, in order."""

    findings: tuple[Finding, ...]

    @property
    def first_broken(self) -> Finding | None:
        """The hop to repair first; None when all is well."""
        return next((finding for finding in self.findings if finding.status is Status.BROKEN), None)

    @property
    def is_well(self) -> bool:
        return all(finding.status is Status.OK for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        first = self.first_broken
        return {"well": self.is_well, "first_broken": first.hop if first else None, "hops": [asdict(f) for f in self.findings]}
