"""nightschool.toml while a service runs: keys come and go without a restart."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nightschool.config.follow import ConfigFollower, KeyChanges
from nightschool.config.reader import load_config, parse_config
from nightschool.config.settings import Config
from nightschool.errors import ConfigError
from nightschool.keys import KeyRing, hash_key

NEVER = 3600.0  # seconds between two looks: only being told to look makes the follower act


def toml(**keys: list[str]) -> str:
    return "\n".join(f"[tenants.{name}]\nkey_sha256 = {[hash_key(key) for key in held]}" for name, held in keys.items())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "nightschool.toml"
    path.write_text(toml(acme=["old"]))
    return path


Follow = Callable[..., "queue.Queue[Config | str]"]


@pytest.fixture
def follow(path: Path) -> Iterator[Follow]:
    """Follows `path`; the queue gets every configuration that was applied and every line that was said."""
    followers: list[ConfigFollower] = []

    def begin(look_seconds: float = 0.01) -> queue.Queue[Config | str]:
        events: queue.Queue[Config | str] = queue.Queue()
        follower = ConfigFollower(path, events.put, say=events.put, look_seconds=look_seconds)
        followers.append(follower)
        follower.start()
        return events

    begin.followers = followers  # type: ignore[attr-defined]
    yield begin
    for follower in followers:
        follower.close()


def keys_of(event: Config | str) -> tuple[str, ...]:
    assert isinstance(event, Config), event
    return event.tenants["acme"].key_sha256


def test_a_changed_file_is_applied(path: Path, follow: Follow) -> None:
    """What the file says when following begins is applied, then every change, whether written in place or replaced."""
    events = follow()
    assert keys_of(events.get(timeout=30)) == (hash_key("old"),)
    path.write_text(toml(acme=["old", "new"]))
    assert keys_of(events.get(timeout=30)) == (hash_key("old"), hash_key("new"))
    draft = path.with_name("draft.toml")
    draft.write_text(toml(acme=["new"]))
    draft.replace(path)
    assert keys_of(events.get(timeout=30)) == (hash_key("new"),)


def test_a_wrong_file_changes_nothing_and_is_told(path: Path, follow: Follow) -> None:
    """A typing error, or no file at all, leaves everything as it was; the corrected file is applied."""
    events = follow()
    events.get(timeout=30)
    path.write_text("[tenants.acme\n")
    said = events.get(timeout=30)
    assert isinstance(said, str)
    assert "stays in force" in said
    assert "not valid TOML" in said
    path.unlink()
    path.write_text(toml(acme=["new"]))
    assert keys_of(events.get(timeout=30)) == (hash_key("new"),)


def test_a_file_that_is_still_being_written_is_not_read(path: Path) -> None:
    """A first look at a change waits for a second one that sees the same: half a file may be valid, with fewer tenants."""
    applied: list[Config] = []
    follower = ConfigFollower(path, applied.append, say=pytest.fail)
    first, second = toml(acme=["a"]), toml(globex=["b"])
    with path.open("w") as file:
        for part in (first, "\n" + second):
            file.write(part)
            file.flush()
            follower.look()
    assert applied == []
    follower.look()
    assert [set(config.tenants) for config in applied] == [{"acme", "globex"}]


def test_sighup_makes_it_look_at_once(path: Path, follow: Follow) -> None:
    """SIGHUP, which would end the process, applies a change without waiting for the next look."""
    events = follow(NEVER)
    (follower,) = follow.followers  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGHUP)
    follower.look_on_hangup()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        assert keys_of(events.get(timeout=30)) == (hash_key("old"),)
        path.write_text(toml(acme=["new"]))
        os.kill(os.getpid(), signal.SIGHUP)
        assert keys_of(events.get(timeout=30)) == (hash_key("new"),)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_keys_are_added_and_revoked_while_others_stay(tmp_path: Path) -> None:
    """A new key opens its tenant, a removed one opens nothing, and each change is one line for the operator."""
    keys = {"acme": (hash_key("old"),), "globex": (hash_key("g"),)}
    ring, said = KeyRing(keys), []
    changes = KeyChanges(ring, keys, say=said.append)
    for held in (["old"], ["old", "new"], ["new"]):
        changes.apply(parse_config(toml(acme=held, globex=["g"]), base=tmp_path))
    assert [ring.tenant_of(f"Bearer {key}") for key in ("old", "new", "g")] == [None, "acme", "globex"]
    assert said == ["tenant acme: 1 keys added, 0 revoked, 2 in force", "tenant acme: 0 keys added, 1 revoked, 1 in force"]


def test_a_tenant_that_left_the_file_is_locked_out(tmp_path: Path) -> None:
    """Its keys are revoked; those of the tenants beside it stay."""
    keys = {"acme": (hash_key("a"),), "globex": (hash_key("g"),)}
    ring = KeyRing(keys)
    KeyChanges(ring, keys, say=lambda line: None).apply(parse_config(toml(globex=["g"]), base=tmp_path))
    assert (ring.tenant_of("Bearer a"), ring.tenant_of("Bearer g")) == (None, "globex")


def test_a_new_tenant_is_told_once_and_not_admitted(path: Path) -> None:
    """A service has no room for a tenant that it was not started for: it says so instead of failing at each request."""
    keys = {"acme": (hash_key("old"),)}
    ring, said = KeyRing(keys), []
    changes = KeyChanges(ring, keys, say=said.append)
    path.write_text(toml(acme=["old"], globex=["g"]))
    for _ in range(2):
        changes.apply(load_config(path))
    assert ring.tenant_of("Bearer g") is None
    assert said == ["tenant globex is new in the configuration: restart this service to admit it, its keys do not count yet"]


def test_a_key_of_two_tenants_leaves_the_ring_as_it_was() -> None:
    """A replacement that is refused changes no key."""
    ring = KeyRing({"acme": ["a" * 64]})
    with pytest.raises(ConfigError, match="share a key"):
        ring.replace({"acme": ["b" * 64], "bank": ["b" * 64]})
    assert ring._tenants == {"a" * 64: "acme"}
