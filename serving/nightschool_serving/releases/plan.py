"""What must be done so that a tenant's route follows its pointer: decisions only, no input and no output."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from nightschool.registry.folder import Pointer
from nightschool_serving.releases.adapter import Adapter

RETIRE_AFTER_SECONDS = 30.0
"""How long an adapter that nothing routes to must have been idle before it leaves the engine."""

MAX_DELAY_SECONDS = 300.0
"""The longest pause before a release that could not be loaded is tried again."""


@dataclass(frozen=True, slots=True)
class Load:
    """Copy the release, verify it, load it into the engine and try it."""

    release: str


@dataclass(frozen=True, slots=True)
class Switch:
    """Let the release, which is in the engine, answer from now on; None is the base model."""

    release: str | None
    epoch: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Take the release out of the engine and delete its local copy."""

    release: str


@dataclass(frozen=True, slots=True)
class Delay:
    """A release that could not be loaded for a reason that may pass; it is tried again."""

    pointer: Pointer
    attempts: int
    not_before_s: float
    """Clock reading, in seconds."""
    reason: str
    """As the tenant is told."""


@dataclass(slots=True)
class TenantState:
    """What is known of one tenant."""

    decided: bool = False
    """Whether it is known since the start what answers the tenant: a release, the base model, or nothing and why."""
    followed: Pointer | None = None
    """The pointer that was acted on last, with or without success; None before the first."""
    previous: Adapter | None = None
    """What answered before the last switch; None is the base model."""
    resident: dict[str, Adapter] = field(default_factory=dict)
    """Adapters in the engine, by release."""
    idle_since: dict[str, float] = field(default_factory=dict)
    """Clock reading since when a resident release has been neither needed nor in use, in seconds."""
    rejected: dict[str, str] | None = None
    """The last release that was refused, and why, as clients see it; None after a switch."""
    rejections: int = 0
    delay: Delay | None = None
    """The release that is to be tried again, and when; None after a switch or a refusal."""
    fallback_for: str | None = None
    """The release in whose place one of its parents answers; None while the pointer's own answers."""
    unreachable: str | None = None
    """Why the registry cannot be read, as clients see it; None while it can."""


def plan(state: TenantState, pointer: Pointer, now_s: float) -> list[Load | Switch]:
    """The steps that make `pointer` answer, in order; none when it was acted on already, or not before a later time.

    A pointer whose release was refused is not tried again before it moves.
    """
    delay = state.delay
    if pointer == state.followed or (delay is not None and delay.pointer == pointer and now_s < delay.not_before_s):
        return []
    release = pointer.stable
    switch = Switch(release, pointer.epoch)
    return [switch] if release is None or release in state.resident else [Load(release), switch]


def delayed(state: TenantState, pointer: Pointer, now_s: float, reason: str) -> Delay:
    """When to try `pointer` again: after 2, 4, 8 ... seconds, at most five minutes."""
    last = state.delay
    attempts = 1 + (last.attempts if last is not None and last.pointer == pointer else 0)
    return Delay(pointer, attempts, now_s + min(MAX_DELAY_SECONDS, 2.0**attempts), reason)


def idle_since(state: TenantState, needed: Collection[str], now_s: float) -> dict[str, float]:
    """Since when each resident release that is not in `needed` has been idle, in seconds of the clock of `now_s`."""
    return {release: state.idle_since.get(release, now_s) for release in state.resident if release not in needed}


def plan_unloads(idle: Mapping[str, float], now_s: float) -> list[Unload]:
    """One step for each release that has been idle for long enough."""
    return [Unload(release) for release, since in idle.items() if now_s - since >= RETIRE_AFTER_SECONDS]
