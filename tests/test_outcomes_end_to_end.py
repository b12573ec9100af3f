"""Outcomes from the app, through the collector and the stream, to the episode they are about."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from nightschool.config.settings import NightConfig
from nightschool.episode import Episode
from nightschool.keys import KeyRing, hash_key
from nightschool.outcomes.tokens import OutcomeKey
from nightschool.sdk.client import Client, Request
from nightschool.stream import Stream, open_stream
from nightschool_collector.app import create_app
from nightschool_collector.outcomes.browser_settings import BrowserSettings
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.examples.example import Example
from nightschool_nightly.examples.learned import Learned, hash_evidence
from nightschool_nightly.examples.select import select_examples
from nightschool_nightly.freeze.freeze import freeze_whole_stream
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.freeze.serving_defaults import ServingDefaults
from nightschool_nightly.freeze.settling import settling_rules
from nightschool_nightly.rewards.rubric import parse_rubric

KEY, SECRET = "ns-acme-key", "s" * 40
QUESTION = [{"role": "user", "content": "where?"}]


class Letters:
    """A tokenizer whose tokens are characters."""

    def apply_chat_template(self, conversation: Any, **options: Any) -> list[int]:
        return [ord(letter) for letter in str(conversation)]

    def encode(self, text: str, **options: Any) -> list[int]:
        return [ord(letter) for letter in text]


class Acme:
    """A tenant's app with its collector and its nights."""

    def __init__(self, stream: Stream, folder: Path, url: str) -> None:
        self.stream, self.folder, self.url = stream, folder, url
        self.client = Client(url, "acme", api_key=KEY, outcome_key=("k1", SECRET))
        self.counts: dict[str, int] = {}

    def answer(self, text: str = "cards", response_id: str | None = None, **marks: Any) -> Request:
        """One request of the app with one model call."""
        with self.client.request(task="triage", **marks) as request:
            with self.client.model_call("m", QUESTION) as call:
                call.answer(text, response_id=response_id)
            return request

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {KEY}"} if path == "/v1/outcomes" else {})
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def freeze(self, now_ms: int, *, last: NightManifest | None = None, **settles_after_ms: int) -> NightManifest:
        assert self.client.flush()
        return freeze_whole_stream(self.stream, tenant="acme", now_ms=now_ms, last=last, settles_after_ms=settles_after_ms)

    def select(self, manifest: NightManifest, *, sampled: Sequence[Example] = ()) -> tuple[list[Example], dict[str, int]]:
        """What a night learns from or tests with, and what it leaves out; its release was made of `sampled`."""
        rubric = parse_rubric('task = "triage"\n[[items]]\nname = "liked"\nkind = "outcome"\noutcome = "thumb"')
        store = EpisodeStore(self.folder)
        store.build(self.stream, manifest)
        chosen = select_examples(
            store.episodes("acme"),
            tenant="acme",
            settings=NightConfig(max_share_per_user=1.0),
            rubrics={"triage": rubric},
            tokenizer=Letters(),
            serving=ServingDefaults(2048),
            settling=settling_rules(manifest),
            learned=Learned(examples=frozenset(hash_evidence(one.id, one.references) for one in sampled)),
        )
        store.close()
        return [*chosen.train, *chosen.holdout], dict(chosen.dropped)

    def episodes(self, *, now_ms: int | None = None) -> list[Episode]:
        """What a night of now would read."""
        manifest = self.freeze(now_ms or time.time_ns() // 10**6)
        store = EpisodeStore(self.folder)
        store.build(self.stream, manifest)
        found = [built.episode for built in store.episodes("acme")]
        self.counts = dict(store.counts.dropped)
        store.close()
        return found

    def only(self) -> Episode:
        (found,) = self.episodes()
        return found


@pytest.fixture
def acme(tmp_path: Path) -> Iterator[Acme]:
    with open_stream(f"sqlite:{tmp_path / 'stream.db'}", partitions=3) as stream:
        browser = BrowserSettings(keys={"acme": [OutcomeKey("k1", SECRET.encode())]})
        app = create_app(stream, KeyRing({"acme": [hash_key(KEY)]}), 1 << 20, browser=browser)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        running = Acme(stream, tmp_path / "store", url)
        yield running
        running.client.shutdown(0)
        server.should_exit = True
        thread.join()


TARGETS: dict[str, Callable[[Request], dict[str, Any]]] = {
    "trace": lambda request: {"trace_id": request.trace_id},
    "span": lambda request: {"trace_id": request.trace_id, "span_id": f"{request.span.span_id:016x}" if request.span else ""},
    "response": lambda request: {"response_id": "r-1"},
    "conversation": lambda request: {"conversation_id": "c-1"},
    "turn": lambda request: {"conversation_id": "c-1", "turn": 0},
    "episode": lambda request: {"episode_id": "e-1"},
    "join key": lambda request: {"join_key": ("ticket", "T-42")},
    "late join key": lambda request: {"join_key": ("order", "7")},
}


@pytest.mark.parametrize("kind", TARGETS)
def test_every_kind_of_target_finds_its_answer(acme: Acme, kind: str) -> None:
    """From any process, with what it knows: the outcome stands in the episode, and nothing is left over."""
    acme.answer()
    with acme.client.request(task="triage", conversation="c-1", episode="e-1") as request:
        request.tag_join("ticket", "T-42")
        with acme.client.model_call("m", QUESTION) as call:
            call.answer("cards", response_id="r-1")
    request.tag_join("order", 7)
    acme.client.outcome("thumb", True, rater="ann", **TARGETS[kind](request))
    outcomes = {episode.trace_id: episode.outcomes for episode in acme.episodes()}
    (history,) = outcomes.pop(request.trace_id or "")
    assert history.current.value is True
    assert list(outcomes.values()) == [()]
    assert acme.counts == {}


def test_an_outcome_may_come_before_its_trace(acme: Acme) -> None:
    """It is accepted, waits, and is in the episode once the trace is there; after the window it is called an orphan."""
    status, said = acme.post(
        "/v1/outcomes",
        {"target": {"response_id": "r-9"}, "name": "thumb", "value": True, "source": {"kind": "human", "id": "ann"}},
    )
    assert (status, said["status"]) == (202, "accepted")
    assert acme.episodes() == []
    assert acme.counts == {"outcome-without-trace": 1}
    assert acme.episodes(now_ms=time.time_ns() // 10**6 + 31 * 86_400_000) == []
    assert acme.counts == {"orphaned-outcome": 1}
    acme.answer(response_id="r-9")
    assert [history.current.value for history in acme.only().outcomes] == [True]


def test_a_page_corrects_and_retracts_its_own_vote(acme: Acme) -> None:
    """Two tokens are two votes; what one page says later replaces what it said, and the history stays."""
    request = acme.answer()
    mia, tom = (acme.client.outcome_token("thumb", trace_id=request.trace_id, user=user) for user in ("mia", "tom"))
    now_ms = time.time_ns() // 10**6
    for token, value, at in ((mia, True, 1), (tom, True, 2), (mia, False, 4), (mia, True, 3)):
        body = {"token": token, "name": "thumb", "value": value, "event_id": f"e-{at}", "occurred_at": now_ms + at}
        assert acme.post("/v1/outcomes/browser", body)[0] == 202
    votes = {history.current.source_id: [item.value for item in history.revisions] for history in acme.only().outcomes}
    assert sorted(votes.values()) == [[True], [True, True, False]]
    assert acme.post("/v1/outcomes/browser", {"token": tom, "name": "thumb", "op": "retract"})[0] == 202
    episode = acme.only()
    assert [history.current.value for history in episode.outcomes] == [False]
    assert [history.current.op for history in episode.retracted] == ["retract"]
    (first, last, corrected) = episode.outcomes[0].received_ns
    assert first < corrected < last  # in order of what happened, not of what arrived


def test_of_two_at_the_same_moment_the_later_in_the_log_stands(acme: Acme) -> None:
    """Equal in what happened and in arrival: the order of the log decides, the same on every read."""
    acme.answer(response_id="r-1")
    said = {
        "target": {"response_id": "r-1"},
        "name": "thumb",
        "source": {"kind": "human", "id": "ann"},
        "occurred_at": 1_790_000_000,
    }
    batch = [{**said, "value": value, "event_id": event} for value, event in ((1, "b"), (2, "c"), (3, "a"))]
    assert acme.post("/v1/outcomes", {"outcomes": batch})[0] == 202
    for _ in range(2):
        (history,) = acme.only().outcomes
        assert [item.value for item in history.revisions] == [1, 2, 3]


def test_an_edit_is_measured_where_the_answer_is_known(acme: Acme) -> None:
    """Accepted, changed and rewritten; by text or messages; a demonstration and an edit of another text are not measured."""
    edits: dict[str, dict[str, Any]] = {
        "kept": {"final_text": "cards "},
        "changed": {"final_text": "cart", "original_text": "cards"},
        "rewritten": {"final_messages": [{"role": "assistant", "content": "loans!"}]},
        "shown": {"demonstration": "loans"},
        "other": {"final_text": "loans", "original_text": "not what was said"},
    }
    acme.answer("cards", response_id="r-1")
    for name, edit in edits.items():
        acme.client.outcome(name, response_id="r-1", rater="ann", **edit)
    figures = {history.current.name: history.edit for history in acme.only().outcomes}
    assert figures["kept"] is not None and figures["kept"].accepted
    assert figures["changed"] is not None and figures["changed"].distance == pytest.approx(2 / 5)
    assert figures["rewritten"] is not None and figures["rewritten"].rewritten
    assert (figures["shown"], figures["other"]) == (None, None)
    assert acme.counts == {"edit-not-measured": 1}


def test_an_outcome_is_about_the_call_it_names(acme: Acme) -> None:
    """In a trace of two calls a response id, or the hash of the edited answer, says which one."""
    with acme.client.request(task="triage"):
        for number, text in enumerate(("first", "second")):
            with acme.client.model_call("m", QUESTION) as call:
                call.answer(text, response_id=f"r-{number}")
        acme.client.outcome("thumb", True, response_id="r-0")
        acme.client.outcome("whole", True)
        acme.client.outcome("edit", final_text="First", original_text="first")
    episode = acme.only()
    about = {history.current.name: history.span_id for history in episode.outcomes}
    assert about == {"thumb": episode.calls[0].span_id, "whole": None, "edit": episode.calls[0].span_id}
    # A night learns from the last call, and the first one's thumb is none of it.
    assert acme.select(acme.freeze(time.time_ns() // 10**6)) == ([], {"no-outcome": 1})


def test_an_id_used_for_two_outcomes_counts_once_and_is_counted(acme: Acme) -> None:
    """Past the collector's memory, in another collector say, the first record of an id stands, and the other has a name."""
    acme.answer(response_id="r-1")
    for value in (True, False, True):
        app = create_app(acme.stream, KeyRing({"acme": [hash_key(KEY)]}), 1 << 20)  # each as after a restart
        outcome = {
            "target": {"response_id": "r-1"},
            "name": "thumb",
            "value": value,
            "event_id": "e-1",
            "source": {"kind": "code"},
        }
        assert TestClient(app).post("/v1/outcomes", json=outcome, headers={"authorization": f"Bearer {KEY}"}).status_code == 202
    (history,) = acme.only().outcomes
    assert [item.value for item in history.revisions] == [True]
    assert acme.counts == {"duplicate-outcome": 1, "event-id-used-twice": 1}


def test_the_hash_of_an_original_is_that_of_its_utf8(acme: Acme) -> None:
    """What any language's SHA-256 of the answer gives, sent without our SDK."""
    acme.answer("Überweisung", response_id="r-1")
    body = {
        "target": {"response_id": "r-1"},
        "name": "edit",
        "edit": {"final_text": "überweisung", "original_sha256": hashlib.sha256("Überweisung".encode()).hexdigest()},
        "source": {"kind": "human", "id": "ann"},
        "occurred_at": int(time.time()),
    }
    assert acme.post("/v1/outcomes", body)[0] == 202
    (history,) = acme.only().outcomes
    assert history.edit is not None and history.edit.distance == pytest.approx(1 / 11)


DAY_MS = 86_400_000


def test_a_night_waits_until_a_thumb_has_stood_for_its_time(acme: Acme) -> None:
    """Provisional, then final in a later night although nothing new came, once; a later correction is a revision of it."""
    acme.answer(response_id="r-1")
    acme.client.outcome("thumb", "cards", response_id="r-1", rater="ann")
    acme.client.flush()
    now_ms = time.time_ns() // 10**6
    first = acme.freeze(now_ms, thumb=DAY_MS)
    assert acme.select(first) == ([], {"outcome-not-settled": 1})
    second = acme.freeze(now_ms + 2 * DAY_MS, last=first, thumb=DAY_MS)
    assert second.has_new_records
    (example,), dropped = acme.select(second)
    assert (example.references, example.revision, dropped) == ({"thumb": "cards"}, 0, {})
    third = acme.freeze(now_ms + 3 * DAY_MS, last=second, thumb=DAY_MS)
    assert acme.select(third, sampled=[example]) == ([], {"seen-by-an-earlier-night": 1})
    assert acme.select(third) == ([example], {})  # the second night was rejected: it is carried over


def test_what_settles_at_once_is_learned_in_the_same_night(acme: Acme) -> None:
    """A human's final answer under a name that waits, and any value under a name that does not."""
    acme.answer(response_id="r-1")
    acme.client.outcome("thumb", final_text="loans", response_id="r-1", rater="ann")
    acme.client.flush()
    now_ms = time.time_ns() // 10**6
    (example,), _ = acme.select(acme.freeze(now_ms, thumb=DAY_MS))
    assert example.demonstration == "loans"
    night = acme.freeze(now_ms)
    assert (night.as_of_ms, night.previous_as_of_ms, len(acme.select(night)[0])) == (0, 0, 1)


def test_only_a_night_that_waits_depends_on_the_hour(acme: Acme) -> None:
    """Without anything to wait for the same evidence is the same night at any time; with it, within the hour."""
    hour_ms = 3_600_000
    at = 1_790_000_000_000 // hour_ms * hour_ms
    assert acme.freeze(at).digest == acme.freeze(at + 5 * hour_ms).digest
    assert acme.freeze(at, thumb=1).digest == acme.freeze(at + hour_ms - 1, thumb=1).digest
    assert acme.freeze(at, thumb=1).digest != acme.freeze(at + hour_ms, thumb=1).digest
    assert acme.freeze(at, thumb=1).digest != acme.freeze(at, thumb=2).digest
    night = acme.freeze(at, thumb=1)
    assert NightManifest.from_json(night.to_json()) == night
