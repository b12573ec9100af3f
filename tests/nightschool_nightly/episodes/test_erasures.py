"""A forgotten user is in no episode: not by trace, by conversation, by a server's span, or by an outcome they gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from nightschool import semconv as names
from nightschool.erasure import Erasure, hash_subject, request_erasure
from nightschool.errors import NightError, RecordError
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.stream import Record, Stream, open_stream
from nightschool_nightly.episodes.assemble import BuiltEpisode
from nightschool_nightly.episodes.store import EpisodeStore
from nightschool_nightly.examples.example import Example, Selection
from nightschool_nightly.examples.forgotten import refuse_forgotten
from nightschool_nightly.freeze.freeze import freeze_whole_stream
from nightschool_nightly.freeze.manifest import NightManifest
from nightschool_nightly.publish.lineage import mark_of, with_lineage

MESSAGES = '[{"role": "%s", "parts": [{"type": "text", "content": "%s"}]}]'
TOKENS = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=7)]))
LOGPROBS = AnyValue(array_value=ArrayValue(values=[AnyValue(double_value=-0.5)]))


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    with open_stream(f"sqlite:{tmp_path / 'stream.db'}", partitions=3) as stream:
        yield stream


@pytest.fixture
def built(stream: Stream, tmp_path: Path) -> Callable[..., tuple[list[BuiltEpisode], dict[str, int]]]:
    def build(manifest: NightManifest | None = None, tenant: str = "acme") -> tuple[list[BuiltEpisode], dict[str, int]]:
        store = EpisodeStore(tmp_path / "store")
        try:
            store.build(stream, manifest or freeze(stream, tenant))
            return list(store.episodes(tenant)), dict(store.counts.dropped)
        finally:
            store.close()

    return build


Built = Callable[..., tuple[list[BuiltEpisode], dict[str, int]]]


def freeze(stream: Stream, tenant: str = "acme", last: NightManifest | None = None) -> NightManifest:
    return freeze_whole_stream(stream, tenant=tenant, last=last)


def say(stream: Stream, trace: int, span: int = 1, *, tenant: str = "acme", call: bool = True, **attributes: Any) -> None:
    """A span of the tenant; `attributes` by their constants in semconv."""
    request = ExportTraceServiceRequest()
    found = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=trace.to_bytes(16, "big"),
            span_id=(1000 * trace + span).to_bytes(8, "big"),
            name="chat",
            start_time_unix_nano=trace,
        )
    )
    content = {"GEN_AI_INPUT_MESSAGES": MESSAGES % ("user", "q"), "GEN_AI_OUTPUT_MESSAGES": MESSAGES % ("assistant", "a")}
    plain = {"GEN_AI_OPERATION_NAME": "chat", **content} if call else {}
    for name, value in {**plain, **attributes}.items():
        wrapped = value if isinstance(value, AnyValue) else AnyValue(string_value=value)
        found.attributes.append(KeyValue(key=getattr(names, name), value=wrapped))
    record = Record(found.trace_id.hex().encode(), request.SerializeToString(), {names.HEADER_TENANT: tenant.encode()})
    stream.append(names.TOPIC_SPANS, [record])


def rate(stream: Stream, trace: int, *, by: str = "rater", tenant: str = "acme") -> None:
    outcome = Outcome({"trace_id": f"{trace:032x}"}, "thumb", value=True, source_id=by)
    value = to_logs_request(outcome, tenant=tenant, received_ns=1).SerializeToString()
    stream.append(names.TOPIC_OUTCOMES, [Record(outcome.key, value, {names.HEADER_TENANT: tenant.encode()})])


def forget(stream: Stream, *subjects: str, tenant: str = "acme", scope: Any = "all") -> None:
    request_erasure(stream, tenant, [Erasure(hash_subject(tenant, subject), 1, scope) for subject in subjects])


def traces(episodes: list[BuiltEpisode]) -> list[int]:
    return [int(item.episode.trace_id, 16) for item in episodes]


def test_the_forgotten_are_in_no_episode(stream: Stream, built: Built) -> None:
    """All spans of their traces go, also those that do not name them; what is left out has a name and a count."""
    say(stream, 1, 1, call=False, SUBJECT="anna")
    say(stream, 1, 2)
    say(stream, 2, SUBJECT="bob")
    rate(stream, 1)
    rate(stream, 2)
    assert traces(built()[0]) == [1, 2]
    forget(stream, "anna")
    episodes, dropped = built()
    assert traces(episodes) == [2] and len(episodes[0].episode.outcomes) == 1
    assert dropped == {"erased-span": 2, "erased-outcome": 1}


def test_what_nobody_signed_in_their_conversations_goes_too(stream: Stream, built: Built) -> None:
    """A turn before the login is theirs; somebody else's turn in a shared conversation is not."""
    say(stream, 1, SUBJECT="anna", GEN_AI_CONVERSATION_ID="c1")
    say(stream, 2, GEN_AI_CONVERSATION_ID="c1")
    say(stream, 3, SUBJECT="bob", GEN_AI_CONVERSATION_ID="c1")
    say(stream, 4, GEN_AI_CONVERSATION_ID="c2")
    forget(stream, "anna")
    assert traces(built()[0]) == [3, 4]


def test_a_servers_view_of_their_calls_goes_too(stream: Stream, built: Built) -> None:
    """A server's span in a trace of its own names no user; the response id says whose it is."""
    say(stream, 1, SUBJECT="anna", GEN_AI_RESPONSE_ID="r1")
    say(stream, 9, SPAN_SIDE="server", GEN_AI_RESPONSE_ID="r1", PROMPT_TOKEN_IDS=TOKENS)
    forget(stream, "anna")
    assert built() == ([], {"erased-span": 2})


def test_their_word_on_others_goes_and_the_others_stay(stream: Stream, built: Built) -> None:
    """Outcomes that they gave about other users' traces go; the traces stay."""
    say(stream, 1, SUBJECT="bob")
    rate(stream, 1, by="anna")
    rate(stream, 1, by="carl")
    forget(stream, "anna")
    ((item,), dropped) = built()
    assert [history.current.source_id for history in item.episode.outcomes] == ["carl"]
    assert dropped == {"erased-outcome": 1}


def test_another_tenants_same_user_is_untouched(stream: Stream, built: Built) -> None:
    """Even where both tenants call the user the same."""
    for tenant in ("acme", "globex"):
        say(stream, 1, tenant=tenant, SUBJECT="anna")
    forget(stream, "anna")
    assert built()[0] == [] and traces(built(tenant="globex")[0]) == [1]


def test_what_arrives_later_is_forgotten_too_until_taken_back(stream: Stream, built: Built) -> None:
    """An exporter may still hold yesterday's spans; after an undo the user counts again."""
    forget(stream, "anna")
    say(stream, 1, SUBJECT="anna")
    assert built()[0] == []
    forget(stream, "anna", scope="none")
    assert traces(built()[0]) == [1]


def test_a_night_applies_the_erasures_it_froze(stream: Stream, built: Built) -> None:
    """The same manifest gives the same batch: a later erasure does not change what is built, it forbids to use it."""
    say(stream, 1, SUBJECT="anna")
    before = freeze(stream)
    forget(stream, "anna")
    after = freeze(stream)
    assert (traces(built(before)[0]), traces(built(after)[0])) == ([1], [])
    assert before.digest != after.digest


def selection(*users: str) -> Selection:
    def example(user: str) -> Example:
        plain: dict[str, Any] = {
            "task": "t",
            "message": "",
            "prompt_ids": (1,),
            "answer": "",
            "references": {},
            "demonstration": None,
        }
        limits = {"max_tokens": 1, "rollout_tokens": 1}
        sampling: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "stop": (), "others": {}}
        return Example(id=user, trace_id=user, cluster=user, **plain, **limits, **sampling)

    train, holdout = users[::2], users[1::2]
    return Selection(tuple(map(example, train)), tuple(map(example, holdout)), {}, len(users))


@pytest.mark.parametrize("user", ["anna", "bob"])
def test_a_night_that_knows_somebody_forgotten_since_is_refused(stream: Stream, user: str) -> None:
    """Trained on or tested with, it stops before it publishes. One without them, or that froze the erasure, goes on."""
    say(stream, 1, SUBJECT="anna")
    manifest = freeze(stream)
    refuse_forgotten(stream, manifest, selection("anna", "bob"))
    forget(stream, user)
    with pytest.raises(NightError, match="1 of the night's users asked to be forgotten after it was frozen"):
        refuse_forgotten(stream, manifest, selection("anna", "bob"))
    refuse_forgotten(stream, manifest, selection("carl", "dora"))
    refuse_forgotten(stream, freeze(stream), selection("anna", "bob"))


def test_an_erasure_is_no_new_evidence(stream: Stream) -> None:
    """An erasure alone starts no night, and its topic may appear between two nights."""
    say(stream, 1, SUBJECT="anna")
    first = freeze(stream)
    forget(stream, "bob")
    second = freeze(stream, last=first)
    assert first.has_new_records and not second.has_new_records
    say(stream, 2, SUBJECT="anna")
    assert freeze(stream, last=second).has_new_records


def test_no_night_passes_over_an_erasure_it_cannot_read(stream: Stream, built: Built) -> None:
    """The erasure may be that of any user of the night."""
    say(stream, 1, SUBJECT="anna")
    stream.append(names.TOPIC_ERASURE, [Record(b"acme/x", b"?", {})])
    with pytest.raises(RecordError, match="is not an erasure"):
        built()


# --- redacted calls -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("redacted", [False, True])
def test_token_ids_of_a_redacted_call_are_not_used(stream: Stream, built: Built, redacted: bool) -> None:
    """The server's ids still spell the text before it was redacted: they are left out and counted, the call stays."""
    said: dict[str, Any] = {"REDACTION_VERSION": "1"} if redacted else {}
    say(stream, 1, GEN_AI_RESPONSE_ID="r1", **said)
    tokens: dict[str, Any] = {"PROMPT_TOKEN_IDS": TOKENS, "COMPLETION_TOKEN_IDS": TOKENS, "COMPLETION_LOGPROBS": LOGPROBS}
    say(stream, 1, 2, SPAN_SIDE="server", GEN_AI_RESPONSE_ID="r1", RELEASE="base", **tokens)
    ((item,), dropped) = built()
    (call,) = item.episode.calls
    assert (call.tokens is None, call.release) == (redacted, "base")
    assert dropped == ({"token-ids-of-redacted-call": 1} if redacted else {})


# --- lineage ------------------------------------------------------------------------------------------------------------
def test_a_manifest_carries_marks_of_whom_it_knew(stream: Stream) -> None:
    """With the subject its mark can be found; the marks of two nights do not match, and the night's digest stays."""
    say(stream, 1, SUBJECT="anna")
    manifest = freeze(stream)
    known = NightManifest.from_json(with_lineage(manifest, selection("anna", "bob")).to_json())
    assert known.digest == manifest.digest
    assert known.learned_from == (mark_of(manifest.digest, hash_subject("acme", "anna")),)
    assert known.tested_with == (mark_of(manifest.digest, hash_subject("acme", "bob")),)
    assert mark_of("another night", hash_subject("acme", "anna")) not in known.learned_from
    assert "anna" not in known.to_json()
