"""`nightschool forget`: what it writes, deletes and says, on a real stream, real night folders and a real registry."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nightschool import semconv as names
from nightschool.config.reader import load_config
from nightschool.config.settings import Config
from nightschool.config.stream import open_configured
from nightschool.erasure import hash_subject, stored_erasures
from nightschool.errors import NightError
from nightschool.keys import hash_key, subject_of
from nightschool.registry.folder import Registry
from nightschool.registry.release import NIGHT, REPORT
from nightschool.stream import Record
from nightschool_nightly.commands.forget import AffectedRelease, describe, forget
from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.folder import NightFolder, NightFolders
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.gate.gate import Decision, compare
from nightschool_nightly.publish.entry import enter_night
from nightschool_nightly.publish.lineage import with_lineage
from nightschool_nightly.publish.publish import publish_release
from nightschool_nightly.training.policy import Policy

KEYS = ("ns-acme-key", "ns-acme-key-before")
ANNA, BOB = (subject_of(hash_key(KEYS[0]), user) for user in ("anna", "bob"))
ANNA_BEFORE = subject_of(hash_key(KEYS[1]), "anna")
SETTINGS = f"""
[stream]
url = "sqlite:stream.db"
[registry]
path = "registry"
[night]
state = "nights"
[tenants.acme]
key_sha256 = ["{hash_key(KEYS[0])}", "{hash_key(KEYS[1])}"]
[tenants.globex]
"""
USERS = [f"u{n}" for n in range(10)]
GAIN = Decision(True, (), (compare("base", [0.0] * 10, [1.0] * 10, USERS, confidence=0.95, seed=0),), kl=0.1)


@dataclass
class Workplace:
    """A folder with a configuration, and what nights leave in it."""

    folder: Path
    config: Config
    make_manifest: Callable[..., NightManifest]
    make_example: Callable[..., Example]
    make_policy: Callable[..., Policy]

    @property
    def registry(self) -> Registry:
        return Registry(self.config.registry.path)

    def span(self, subject: str, *, tenant: str = "acme") -> None:
        """A record that names `subject`; its bytes need not be OTLP to be counted."""
        with open_configured(self.config.stream) as stream:
            stream.append(
                names.TOPIC_SPANS, [Record(b"k", f"... {subject} ...".encode(), {names.HEADER_TENANT: tenant.encode()})]
            )

    def night(
        self, seed: int, *, train: tuple[str, ...] = (), holdout: tuple[str, ...] = (), finished: bool = True
    ) -> NightFolder:
        """The folder of a night that selected these subjects."""
        manifest, selection = self.selected(seed, train, holdout)
        folder = NightFolders(self.config.night.state, "acme").night(manifest.digest)
        for name, text in ((NIGHT, manifest.to_json()), ("selection.json", selection.to_json()), ("evaluation.json", "{}")):
            folder.write(name, text)
        (folder.path / "candidate").mkdir()
        (folder.path / "candidate" / REPORT).write_text("anna wrote")
        if finished:
            folder.write("finished.json", json.dumps({"end": "rejected", "text": "worse", "release": None}))
        return folder

    def selected(
        self, seed: int, train: tuple[str, ...], holdout: tuple[str, ...], **changes: Any
    ) -> tuple[NightManifest, Selection]:
        made = [tuple(self.make_example(f"{user}-{seed}", cluster=user) for user in users) for users in (train, holdout)]
        manifest = self.make_manifest(settings={"seed": seed}, **changes)
        return manifest, Selection(made[0], made[1], {}, len(train) + len(holdout))

    def release(self, seed: int, *, train: tuple[str, ...] = (), holdout: tuple[str, ...] = ()) -> str:
        """A published release whose night selected these subjects, on top of the one before."""
        nights = self.registry.ledger("acme").entries()
        changes = {"pointer": self.registry.pointer("acme"), "ledger": nights[-1].digest if nights else ""}
        manifest, selection = self.selected(seed, train, holdout, **changes)
        candidate = self.folder / f"candidate-{seed}"
        self.make_policy(moved=0.2, seed=seed).save(candidate)
        (candidate / REPORT).write_text("<p>better</p>")
        (candidate / NIGHT).write_text(with_lineage(manifest, selection).to_json())
        enter = partial(enter_night, self.registry, manifest, selection, end="published")
        return publish_release(self.registry, candidate, manifest, GAIN, enter=lambda release: enter(release=release))

    def forget(self, *subjects: str, **options: Any) -> Any:
        return forget(self.config, "acme", subjects or (ANNA,), now_ms=lambda: 1_790_000_000_000, **options)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        config = str(self.folder / "nightschool.toml")
        command = [sys.executable, "-m", "nightschool", "forget", "--config", config, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def work(
    tmp_path: Path,
    make_manifest: Callable[..., NightManifest],
    make_example: Callable[..., Example],
    make_policy: Callable[..., Policy],
) -> Iterator[Workplace]:
    (tmp_path / "nightschool.toml").write_text(SETTINGS)
    yield Workplace(tmp_path, load_config(tmp_path / "nightschool.toml"), make_manifest, make_example, make_policy)


def erased(work: Workplace) -> dict[str, str]:
    with open_configured(work.config.stream) as stream:
        return {hash_: erasure.scope for hash_, erasure in stored_erasures(stream, "acme").items()}


def files(folder: NightFolder) -> set[str]:
    return {path.name for path in folder.path.iterdir()}


def test_files_of_nights_that_knew_the_user_go_and_others_stay(work: Workplace) -> None:
    """Trained on or tested with: selection, answers, checkpoints and candidate go; how the night ended stays."""
    trained, tested = work.night(1, train=(ANNA, BOB)), work.night(2, holdout=(ANNA,))
    other = work.night(3, train=(BOB,))
    before = files(other)
    found = work.forget()
    assert sorted(found.nights) == sorted([trained.path.name, tested.path.name])
    for folder in (trained, tested):
        assert files(folder) == {NIGHT, "finished.json", "forgotten.json"}
        assert folder.finished == {"end": "rejected", "text": "worse", "release": None}
        assert ANNA not in "".join(path.read_text() for path in folder.path.iterdir())
    assert files(other) == before


def test_an_unfinished_night_that_knew_the_user_cannot_be_resumed(work: Workplace) -> None:
    """The night is over; a new one freezes the erasure."""
    folder = work.night(1, train=(ANNA,), finished=False)
    assert NightFolders(work.config.night.state, "acme").newest_unfinished().path == folder.path
    work.forget()
    with pytest.raises(NightError, match="no unfinished night"):
        NightFolders(work.config.night.state, "acme").newest_unfinished()
    assert folder.finished == {"end": "forgotten", "text": "a user it had selected asked to be forgotten", "release": None}


def test_doing_it_again_changes_nothing_and_says_the_same(work: Workplace) -> None:
    """One erasure in the stream, the same nights named, and that it was done before."""
    work.span(ANNA)
    work.night(1, train=(ANNA,))
    first, second = work.forget(), work.forget()
    assert (first.before_ms, second.before_ms) == (None, 1_790_000_000_000)
    assert (first.records, first.nights, first.releases) == (second.records, second.nights, second.releases)
    with open_configured(work.config.stream) as stream:
        assert stream.end_offsets(names.TOPIC_ERASURE) == {0: 1}
    assert erased(work) == {hash_subject("acme", ANNA): "all"}


def test_an_erasure_can_be_taken_back(work: Workplace) -> None:
    """Only one that stands; taking it back twice is once."""
    assert work.forget(undo=True).before_ms is None and erased(work) == {}
    work.forget()
    assert work.forget(undo=True).before_ms and erased(work) == {hash_subject("acme", ANNA): "none"}
    assert work.forget(undo=True).before_ms is None


def test_what_is_still_in_the_stream_is_counted(work: Workplace) -> None:
    """Records that name the user, of this tenant only."""
    for subject in (ANNA, ANNA, BOB):
        work.span(subject)
    work.span(ANNA, tenant="globex")
    found = work.forget()
    assert found.records == {names.TOPIC_SPANS: 2} and found.newest_ms > 0
    assert work.forget("nobody").records == {}


def test_a_night_that_is_running_is_left_alone_and_said(work: Workplace) -> None:
    """The erasure counts all the same, and the night will refuse to publish."""
    folder = work.night(1, train=(ANNA,), finished=False)
    with NightFolders(work.config.night.state, "acme").locked():
        found = work.forget()
    assert found.running and found.nights == [] and "selection.json" in files(folder)
    assert erased(work) == {hash_subject("acme", ANNA): "all"}
    assert "a night of this tenant is running" in describe(found, tenant="acme", undo=False)


def test_releases_that_learned_from_the_user_are_named_with_what_was_built_on_them(work: Workplace) -> None:
    """Learned from, tested with, built on, and which of them serves; a release before the user is clean."""
    clean = work.release(1, train=(BOB,))
    learned = work.release(2, train=(ANNA, BOB))
    tested = work.release(3, train=(BOB,), holdout=(ANNA,))
    newest = work.release(4, train=(BOB,))
    found = {release.release: release for release in work.forget().releases}
    nights = {digest: work.registry.manifest("acme", digest).night for digest in found}
    assert found == {
        learned: AffectedRelease(learned, nights[learned], "older", learned=True, tested=False, built_on=None),
        tested: AffectedRelease(tested, nights[tested], "older", learned=False, tested=True, built_on=learned),
        newest: AffectedRelease(newest, nights[newest], "stable", learned=False, tested=False, built_on=learned),
    }
    assert clean not in found
    said = describe(work.forget(), tenant="acme", undo=False)
    assert (
        f"release {newest[:12]} (stable) of night {nights[newest][:12]}: built on {learned[:12]}, which learned from them" in said
    )
    assert "weights cannot forget" in said


def test_the_ledger_says_which_nights_name_the_user(work: Workplace) -> None:
    """The hash of a user stays in the registry, so that who trained never tests; forgetting says where it is."""
    work.release(1, train=(BOB,))
    learned, tested = work.release(2, train=(ANNA, BOB)), work.release(3, train=(BOB,), holdout=(ANNA,))
    found = work.forget()
    assert found.ledger == [work.registry.manifest("acme", digest).night for digest in (learned, tested)]
    assert f"so that who trained never tests: night {found.ledger[0][:12]}" in describe(found, tenant="acme", undo=False)
    assert ANNA not in "".join(path.read_text() for path in work.registry.ledger("acme").folder.glob("*.json"))


# --- the command --------------------------------------------------------------------------------------------------------
def test_the_command_forgets_a_user_under_every_key(work: Workplace) -> None:
    """By the app's own name of the user: under the pseudonyms of all keys of the tenant, none of which is given."""
    work.span(ANNA_BEFORE)
    done = work.command("--tenant", "acme", "--user", "anna")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "no night of tenant acme learns from this user any more"
    assert "1 in ns.otlp_spans" in done.stdout
    assert set(erased(work)) == {hash_subject("acme", ANNA), hash_subject("acme", ANNA_BEFORE)}


def test_the_command_says_when_nobody_knows_the_user(work: Workplace) -> None:
    """A misspelled name is answered with a sentence; a subject can be given as the stream has it."""
    done = work.command("--tenant", "acme", "--user", "ana")
    assert done.returncode == 0 and "nothing in the stream names this user" in done.stdout
    done = work.command("--tenant", "acme", "--subject", BOB, "--undo")
    assert done.stdout.splitlines() == ["this user was not forgotten; nothing to undo"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tenant", "acm", "--user", "anna"], "tenant 'acm' is not in nightschool.toml (known: acme, globex)"),
        (["--tenant", "globex", "--user", "anna"], "neither subject_key_file nor key_sha256"),
        (["--tenant", "acme"], "one of the arguments --user --subject is required"),
        (["--tenant", "acme", "--user", ""], "--user is empty; say who is to be forgotten"),
        (
            ["--tenant", "acme", "--subject", "be26390b"],
            "give all 32 digits, as 'nightschool episodes --tenant acme --json' has them",
        ),
    ],
)
def test_the_command_refuses_what_it_cannot_do(work: Workplace, arguments: list[str], said: str) -> None:
    """One clear line and exit status 2."""
    done = work.command(*arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
