"""`python -m nightschool_nightly.commands.forget`: what `nightschool forget` starts.

It does three things: an erasure goes into the stream, so that no night from now on selects the user; the files of
nights that did are deleted; and what cannot be undone (releases that learned from the user, records until they expire)
is named. Doing it again changes nothing and says the same.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from nightschool import semconv
from nightschool.cli import forget as command
from nightschool.config.reader import load_config
from nightschool.config.redactors import subject_secrets
from nightschool.config.settings import Config
from nightschool.config.stream import open_configured
from nightschool.erasure import Erasure, hash_subject, request_erasure, stored_erasures
from nightschool.errors import ConfigError, MissingExtraError, NightError, NightschoolError
from nightschool.keys import subject_of
from nightschool.registry.folder import Registry
from nightschool.registry.release import NIGHT
from nightschool.stream import Stream

FORGOTTEN = "forgotten.json"
"""In a night's folder: hashes of the subjects whose files were deleted from it."""
_KEPT_FILES = {"night.json", "finished.json", FORGOTTEN}
_TOPICS = (semconv.TOPIC_SPANS, semconv.TOPIC_LOGS, semconv.TOPIC_OUTCOMES)


@dataclass(frozen=True, slots=True)
class AffectedRelease:
    """A release that has something of the user in it, or is built on one that has."""

    release: str
    """Its digest."""
    night: str
    state: str
    """"stable", "canary" or "older"."""
    learned: bool
    """Its own night learned from them."""
    tested: bool
    """Its own night tested with them: their messages may be in its report, but not in its weights."""
    built_on: str | None
    """Digest of the nearest ancestor whose night learned from them; None when there is none."""


@dataclass(slots=True)
class Forgotten:
    """What was done, and what of the user is left."""

    subjects: tuple[str, ...]
    before_ms: int | None = None
    """When the user had already been forgotten; None when they had not."""
    records: dict[str, int] = field(default_factory=dict)
    """How many records of each topic name the user and are still in the stream."""
    newest_ms: int = 0
    """When the newest of them was stored."""
    nights: list[str] = field(default_factory=list)
    """Digests of the nights whose files were deleted, now or before."""
    running: bool = False
    """A night of the tenant was running, so that the files of its nights could not be deleted."""
    releases: list[AffectedRelease] = field(default_factory=list)
    ledger: list[str] = field(default_factory=list)
    """Digests of the nights whose entry in the registry's ledger holds the user's hash, as the erasure itself does."""


def forget(config: Config, tenant: str, subjects: Sequence[str], *, now_ms: Callable[[], int], undo: bool = False) -> Forgotten:
    """Forget subjects of `tenant` (a user may have several pseudonyms), or with `undo` take it back; safe to repeat."""
    found = Forgotten(tuple(subjects))
    hashes = {hash_subject(tenant, subject): subject for subject in subjects}
    with open_configured(config.stream) as stream:
        known = stored_erasures(stream, tenant)
        requested_ms = [known[hash_].requested_at_ms for hash_ in hashes if hash_ in known and known[hash_].scope == "all"]
        found.before_ms = min(requested_ms, default=None)
        wanted = "none" if undo else "all"
        missing = [
            Erasure(hash_, now_ms(), wanted)  # type: ignore[arg-type]
            for hash_ in hashes
            if (known[hash_].scope if hash_ in known else "none") != wanted
        ]
        if missing:
            request_erasure(stream, tenant, missing)
        _count_records(stream, tenant, subjects, found)
    if not undo:
        _purge(config, tenant, hashes, found)
        registry = Registry(config.registry.path)
        found.releases = _affected_releases(registry, tenant, hashes)
        found.ledger = _nights_in_ledger(registry, tenant, subjects)
    return found


# --- what is in the stream ----------------------------------------------------------------------------------------------
def _count_records(stream: Stream, tenant: str, subjects: Collection[str], found: Forgotten) -> None:
    """Count records with a subject in their bytes: quick, and never too few, as a pseudonym is stored as plain text."""
    needles = [subject.encode() for subject in subjects]
    for topic in _TOPICS:
        starts = stream.start_offsets(topic)
        for partition, end in sorted(stream.end_offsets(topic).items()):
            for record in stream.read(topic, partition, starts.get(partition, 0), end):
                owner = record.headers.get(semconv.HEADER_TENANT, tenant.encode())
                if owner == tenant.encode() and any(needle in record.value for needle in needles):
                    found.records[topic] = found.records.get(topic, 0) + 1
                    found.newest_ms = max(found.newest_ms, record.timestamp_ms)


# --- local copies -------------------------------------------------------------------------------------------------------
def _purge(config: Config, tenant: str, hashes: Collection[str], found: Forgotten) -> None:
    """Delete the files of every night that selected the user, except those that say how it ended and whom it forgot."""
    from nightschool_nightly.folder import NightFolders

    folders = NightFolders(config.night.state, tenant)
    if not folders.root.is_dir():
        return
    try:
        with folders.locked():
            for path in sorted(folders.root.glob("*/night.json")):
                folder = folders.night(path.parent.name)
                forgotten = set(folder.read(FORGOTTEN) or ())
                here = {hash_ for hash_ in _selected(folder.path, tenant) if hash_ in hashes}
                if here:
                    # First the file that keeps the night from being resumed, then the others: a crash in between leaves
                    # a night that is not resumed and whose files the next run of this command deletes.
                    if folder.finished is None:
                        folder.write("finished.json", json.dumps({"end": "forgotten", "text": _ENDED, "release": None}))
                    folder.write(FORGOTTEN, json.dumps(sorted(forgotten | here)))
                    folder.clear(keep=_KEPT_FILES)
                if here or forgotten & set(hashes):
                    found.nights.append(path.parent.name)
    except NightError:  # the lock is taken
        found.running = True


_ENDED = "a user it had selected asked to be forgotten"


def _selected(folder: Path, tenant: str) -> Iterator[str]:
    """Erasure hashes of the users a night selected; none when it did not get that far, or its files are deleted."""
    from nightschool_nightly.examples.example import CLUSTER_KEY

    path = folder / "selection.json"
    if not path.exists():
        return
    selection = json.loads(path.read_text(encoding="utf-8"))
    for cluster in {example[CLUSTER_KEY] for name in ("train", "holdout") for example in selection[name]}:
        yield hash_subject(tenant, cluster)


# --- releases -----------------------------------------------------------------------------------------------------------
def _affected_releases(registry: Registry, tenant: str, hashes: Collection[str]) -> list[AffectedRelease]:
    """Every release whose night knew the user, or that was built on one that learned from them."""
    from nightschool_nightly.freeze.manifest import NightManifest
    from nightschool_nightly.publish.lineage import mark_of

    pointer = registry.pointer(tenant)
    parents: dict[str, str | None] = {}
    known: dict[str, tuple[str, bool, bool]] = {}
    for release in registry.releases(tenant):
        manifest = registry.manifest(tenant, release)
        frozen = registry.release_folder(tenant, release) / NIGHT
        night = NightManifest.from_json(frozen.read_text(encoding="utf-8")) if frozen.exists() else None
        marks = {mark_of(manifest.night, hash_) for hash_ in hashes}
        learned, tested = (bool(marks & set(left)) for left in ((night.learned_from, night.tested_with) if night else ((), ())))
        parents[release], known[release] = manifest.parent, (manifest.night, learned, tested)
    found = []
    for release, (night_digest, learned, tested) in known.items():
        ancestor = parents[release]
        while ancestor in known and not known[ancestor][1]:
            ancestor = parents[ancestor]
        built_on = ancestor if ancestor in known else None
        if learned or tested or built_on:
            state = {pointer.stable: "stable", pointer.canary: "canary"}.get(release, "older")
            found.append(AffectedRelease(release, night_digest, state, learned, tested, built_on))
    return found


def _nights_in_ledger(registry: Registry, tenant: str, subjects: Sequence[str]) -> list[str]:
    """Digests of the nights whose entry names one of the subjects."""
    from nightschool_nightly.examples.learned import hash_cluster

    hashes = {hash_cluster(tenant, subject) for subject in subjects}
    return [entry.night for entry in registry.ledger(tenant).entries() if hashes & {*entry.trained, *entry.tested}]


# --- in words -----------------------------------------------------------------------------------------------------------
def describe(found: Forgotten, *, tenant: str, undo: bool) -> str:
    """What was done and what is left, as lines for a person."""
    lines = [_what_happened(found, tenant, undo)]
    num_records = sum(found.records.values())
    if not num_records:
        lines.append("nothing in the stream names this user; the erasure stands for what may still arrive" if not undo else "")
    else:
        per_topic = ", ".join(f"{number} in {topic}" for topic, number in found.records.items())
        lines.append(
            f"still in the stream until they expire, and in no night: {per_topic}; the newest of {_date(found.newest_ms)}"
        )
    if found.running:
        lines.append("a night of this tenant is running: it will publish nothing they are in; run this again when it has ended")
    lines += [f"files deleted: night {night[:12]}" for night in found.nights]
    lines += [_described(release) for release in found.releases]
    if found.ledger:
        nights = ", ".join(night[:12] for night in found.ledger)
        lines.append(
            f"the registry keeps a hash of this user, as the erasure does, so that who trained never tests: night {nights}"
        )
    if any(release.learned or release.built_on for release in found.releases):
        lines.append(
            "weights cannot forget: point the tenant at a release that is not named here, or at the base model, and the next"
        )
        lines.append("night learns without this user; delete the named releases' folders when nothing serves them any more")
    return "\n".join(filter(None, lines))


def _what_happened(found: Forgotten, tenant: str, undo: bool) -> str:
    if undo:
        return (
            f"the erasure is taken back for tenant {tenant}"
            if found.before_ms
            else "this user was not forgotten; nothing to undo"
        )
    if found.before_ms:
        return f"this user of tenant {tenant} was forgotten already, on {_date(found.before_ms)}"
    return f"no night of tenant {tenant} learns from this user any more"


def _described(found: AffectedRelease) -> str:
    what = ["learned from them"] * found.learned + ["tested with them"] * found.tested
    what += [f"built on {found.built_on[:12]}, which learned from them"] if found.built_on else []
    report = "; its report may quote them" if found.learned or found.tested else ""
    return f"release {found.release[:12]} ({found.state}) of night {found.night[:12]}: {' and '.join(what)}{report}"


def _date(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


# --- command ------------------------------------------------------------------------------------------------------------
def _subjects(config: Config, tenant: str, *, user: str | None, subject: str | None) -> tuple[str, ...]:
    if not (user if subject is None else subject):
        raise ConfigError(f"{'--user' if subject is None else '--subject'} is empty; say who is to be forgotten")
    if subject is not None:
        if re.fullmatch(r"(?=.*[a-f])[0-9a-f]{8}", subject):
            raise ConfigError(
                f"--subject is {subject!r}, the short form that 'nightschool episodes' shows; give all 32 digits, as"
                f" 'nightschool episodes --tenant {tenant} --json' has them"
            )
        return (subject,)
    secrets = subject_secrets(tenant, config.tenant(tenant))
    if not secrets:
        raise ConfigError(
            f"tenant {tenant!r} has neither subject_key_file nor key_sha256, so nobody's pseudonym is known; set one, or give"
            " --subject as it stands in the stream"
        )
    return tuple(subject_of(secret, user or "") for secret in secrets)


def main(argv: Sequence[str] | None = None) -> int:
    """Forget; 0 when the user is in no later night."""
    parser = argparse.ArgumentParser(prog="nightschool forget", description=command.SUMMARY)
    command.add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        config = load_config(arguments.config)
        subjects = _subjects(config, arguments.tenant, user=arguments.user, subject=arguments.subject)
        config.tenant(arguments.tenant)
        try:
            found = forget(config, arguments.tenant, subjects, now_ms=lambda: time.time_ns() // 1_000_000, undo=arguments.undo)
        except ModuleNotFoundError as error:
            raise MissingExtraError("forgetting", "nightly", error.name or "?") from error
    except NightschoolError as error:
        print(f"nightschool forget: {error}", file=sys.stderr)
        return 2
    print(describe(found, tenant=arguments.tenant, undo=arguments.undo))
    return 0


if __name__ == "__main__":
    sys.exit(main())
