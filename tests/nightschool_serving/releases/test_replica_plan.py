"""The steps that make a tenant's route follow its pointer, decided without a registry or an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from nightschool.registry.folder import Pointer
from nightschool_serving.releases.adapter import Adapter
from nightschool_serving.releases.plan import (
    RETIRE_AFTER_SECONDS,
    Load,
    Switch,
    TenantState,
    Unload,
    delayed,
    idle_since,
    plan,
    plan_unloads,
)

FIRST, SECOND = "a" * 64, "b" * 64


def adapter(release: str) -> Adapter:
    return Adapter("bank", release, 1001, Path("/cache") / release, content=release[:1])


@pytest.mark.parametrize(
    ("resident", "stable", "steps"),
    [
        ((), FIRST, [Load(FIRST), Switch(FIRST, 3)]),
        ((FIRST,), SECOND, [Load(SECOND), Switch(SECOND, 3)]),
        ((FIRST, SECOND), FIRST, [Switch(FIRST, 3)]),  # a rollback
        ((FIRST,), None, [Switch(None, 3)]),  # the base model
    ],
)
def test_a_moved_pointer_is_loaded_if_need_be_and_switched_to(
    resident: tuple[str, ...], stable: str | None, steps: list[Load | Switch]
) -> None:
    """What the engine has already is not loaded again; the switch comes last, with the epoch of the pointer."""
    state = TenantState(followed=Pointer(2), resident={release: adapter(release) for release in resident})
    assert plan(state, Pointer(3, stable), 0.0) == steps


def test_the_first_pointer_is_followed_even_when_nothing_was_released() -> None:
    """Epoch 0 is the base model, which answers only after the registry was read."""
    assert plan(TenantState(), Pointer(), 0.0) == [Switch(None, 0)]


def test_a_pointer_that_was_acted_on_needs_no_steps() -> None:
    """With success or without: a refused release is tried again only when the pointer moves."""
    refused = Pointer(3, FIRST)
    state = TenantState(followed=refused, rejected={"release": FIRST, "reason": "damaged"})
    assert plan(state, refused, 0.0) == []
    assert plan(state, Pointer(4, FIRST), 0.0) == [Load(FIRST), Switch(FIRST, 4)]


def test_a_release_that_may_load_later_is_tried_after_longer_and_longer_pauses() -> None:
    """2, 4, 8 ... seconds, at most five minutes; a moved pointer is tried at once and starts anew."""
    pointer, state, now_s, pauses = Pointer(3, FIRST), TenantState(), 0.0, []
    for _ in range(10):
        state.delay = delayed(state, pointer, now_s, "busy")
        pauses.append(state.delay.not_before_s - now_s)
        assert plan(state, pointer, state.delay.not_before_s - 0.1) == []
        now_s = state.delay.not_before_s
        assert plan(state, pointer, now_s) == [Load(FIRST), Switch(FIRST, 3)]
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    moved = Pointer(4, SECOND)
    assert plan(state, moved, 0.0) == [Load(SECOND), Switch(SECOND, 4)]
    assert delayed(state, moved, 0.0, "busy").attempts == 1


def test_a_release_is_unloaded_after_it_was_idle_without_a_break() -> None:
    """The time counts from when it was last needed; use in between starts it again, and what is needed never goes."""
    state = TenantState(resident={FIRST: adapter(FIRST), SECOND: adapter(SECOND)})
    state.idle_since = idle_since(state, {SECOND}, 100.0)
    assert state.idle_since == {FIRST: 100.0}
    assert plan_unloads(state.idle_since, 100.0 + RETIRE_AFTER_SECONDS - 1) == []
    assert plan_unloads(state.idle_since, 100.0 + RETIRE_AFTER_SECONDS) == [Unload(FIRST)]
    state.idle_since = idle_since(state, {FIRST, SECOND}, 110.0)
    assert state.idle_since == {}
    assert idle_since(state, {SECOND}, 120.0) == {FIRST: 120.0}
