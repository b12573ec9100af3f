"""The hops in order: what each looks at, what is wrong when it is broken, and what to do then."""

from __future__ import annotations

import gzip
import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nightschool import semconv as names
from nightschool.config.reader import load_config
from nightschool.config.redactors import redactors
from nightschool.config.stream import open_configured
from nightschool.errors import ConfigError, NightError, RubricError
from nightschool.keys import KeyRing, hash_key, new_key
from nightschool.registry.base_model import base_model_folder
from nightschool.registry.folder import Pointer, Registry
from nightschool.registry.release import BaseModel, describe_file
from nightschool.sdk.client import Client, is_disabled
from nightschool.sdk.content_capture import CAPTURE_VARIABLE
from nightschool.sdk.export.delivery import Delivery, Reply
from nightschool.stream import StoredRecord, Stream
from nightschool_nightly.dialects import context_of, read_messages
from nightschool_nightly.doctor.ask import ask
from nightschool_nightly.doctor.findings import BrokenHopError, Hop, Passed
from nightschool_nightly.doctor.follow import Follower
from nightschool_nightly.doctor.visit import (
    ANSWER_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    CONVERSATION,
    FLUSH_TIMEOUT_S,
    QUESTION,
    RATER,
    USER,
    Visit,
)
from nightschool_nightly.episodes.redacted_stream import RedactedStream
from nightschool_nightly.episodes.store import BuiltEpisode, EpisodeStore
from nightschool_nightly.examples.gather import settling_of
from nightschool_nightly.examples.reasons import explain
from nightschool_nightly.examples.select import Drop, Example, select_examples
from nightschool_nightly.freeze.manifest import FrozenRange, NightManifest
from nightschool_nightly.freeze.settling import HOUR_MS, lateness_of
from nightschool_nightly.rewards.load import load_rubrics

_MAX_SKEW_MS = 5_000
_MAX_TOKENS = 8
_SEND = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Step:
    """How a hop is checked, and which hops must be well for that."""

    hop: Hop
    check: Callable[[Visit], Passed]
    needs: tuple[Hop, ...] = ()


# --- configuration and key ------------------------------------------------------------------------------------------------
def check_configuration(visit: Visit) -> Passed:
    try:
        config = load_config(visit.options.config)
        tenants = sorted(config.tenants)
        if visit.options.tenant is None and len(tenants) != 1:
            raise ConfigError(f"{visit.options.config} has the tenants {', '.join(tenants) or 'none'}; name one with --tenant")
        tenant = visit.options.tenant or tenants[0]
        config.tenant(tenant)
        rubrics = load_rubrics(config, tenant)
    except (ConfigError, RubricError, NightError) as error:
        raise BrokenHopError(str(error), "correct the file; 'nightschool config' prints every setting") from error
    visit.config, visit.tenant, visit.rubrics = config, tenant, rubrics
    wanted = {name for rubric in rubrics.values() for name in rubric.outcome_names}
    visit.outcome_ids = {name: f"{names.DOCTOR_TASK}-{uuid.uuid4().hex}" for name in sorted(wanted) or [names.DOCTOR_TASK]}
    return Passed(f"tenant {tenant}, stream {config.stream.url}, rubrics for {', '.join(sorted(rubrics))}")


def check_key(visit: Visit) -> Passed:
    key, hashes = visit.options.key, {name: tenant.key_sha256 for name, tenant in visit.config.tenants.items()}
    if not key:
        raise BrokenHopError(
            "no API key was given",
            f"put the tenant's key into NIGHTSCHOOL_API_KEY; 'nightschool key --tenant {visit.tenant}' makes one",
        )
    owner = KeyRing(hashes).tenant_of(f"Bearer {key}")
    if owner is None:
        raise BrokenHopError(
            "the key is no tenant's",
            f"look whether the key was copied whole; if it is a new one of this tenant, its SHA-256 {hash_key(key)} belongs into"
            f" [tenants.{visit.tenant}] key_sha256, and collector and serving want a restart",
        )
    if owner != visit.tenant:
        raise BrokenHopError(
            f"the key is of tenant {owner}, not {visit.tenant}", f"use a key of {visit.tenant}, or --tenant {owner}"
        )
    visit.key = key
    return Passed(f"a key of {visit.tenant}")


# --- collector and stream -------------------------------------------------------------------------------------------------
def check_collector(visit: Visit) -> Passed:
    url, start = (
        visit.collector,
        f"start it: nightschool collect --config {visit.options.config}; or say where it is: --collector URL",
    )
    health = ask("GET", url, "/healthz", timeout_s=CONNECT_TIMEOUT_S)
    if health.status == 0:
        raise BrokenHopError(f"nothing answers at {url}: {health.reason}", start)
    if health.status == 404:  # a foreign collector, which has its health elsewhere
        return Passed(f"{url} answers, but is no collector of ours: whether it is ready is not known")
    ready = ask("GET", url, "/readyz", timeout_s=CONNECT_TIMEOUT_S)
    if health.status != 200 or ready.status != 200:
        raise BrokenHopError(
            f"{url} is not ready: {(ready if health.status == 200 else health).said}",
            "look at the collector's log; mostly its stream cannot be used",
        )
    return Passed(f"{url} answers and is ready")


def check_authentication(visit: Visit) -> Passed:
    reply = _post_nothing(visit, visit.key)
    if reply.status in (401, 403):
        raise BrokenHopError(
            f"the collector does not know the key: {_said(reply)}",
            "restart the collector: it runs with another nightschool.toml than this one",
        )
    if reply.status != 200:  # no word about the key, and it would say the same of spans: the hop that sends some names it
        return Passed(f"it refuses no key, but whether it knows one is not known: it answers {_said(reply)}")
    stranger = _post_nothing(visit, new_key(visit.tenant))
    if stranger.status not in (401, 403):
        raise BrokenHopError(
            f"a key that nobody has is not refused: {_said(stranger)}",
            "put the collector behind authentication: anybody can write now",
        )
    return Passed("the key is accepted, an unknown one is refused")


def _post_nothing(visit: Visit, key: str) -> Reply:
    delivery = Delivery(visit.collector, key, timeout_s=CONNECT_TIMEOUT_S)
    try:
        return delivery.post("/v1/traces", gzip.compress(b""), content_type="application/x-protobuf")
    finally:
        delivery.close()


def _said(reply: Reply) -> str:
    return f"{reply.status} {reply.reason}" if reply.status else reply.reason


def check_stream(visit: Visit) -> Passed:
    url = visit.config.stream.url
    if url.startswith("sqlite:") and not Path(url.removeprefix("sqlite:")).is_file():
        raise BrokenHopError(
            f"{url} does not exist",
            "the collector runs with another nightschool.toml, or in another place; start it with this one",
        )
    stream = visit.closing.enter_context(open_configured(visit.config.stream))
    visit.follower = Follower(stream, (names.TOPIC_SPANS, names.TOPIC_OUTCOMES))
    return Passed(f"{url} can be read")


# --- the app's side -------------------------------------------------------------------------------------------------------
def send_marked_request(visit: Visit) -> Passed:
    """Record and send the marked request, as an app does."""
    if is_disabled():
        raise BrokenHopError(
            "NIGHTSCHOOL_DISABLED is set: an app in this environment records nothing", "unset NIGHTSCHOOL_DISABLED"
        )
    client = Client(visit.collector, visit.tenant, api_key=visit.key, service_name="nightschool-doctor")
    visit.closing.callback(client.shutdown, 1.0)
    messages = [{"role": "user", "content": QUESTION}]
    visit.sent_ms = time.time_ns() // 1_000_000
    with client.request(task=names.DOCTOR_TASK, user=USER, conversation=CONVERSATION) as request:
        if request.trace_id is None:
            raise BrokenHopError("the tracer started no trace", "run the app with NIGHTSCHOOL_STRICT=1 and read what it raises")
        visit.client, visit.trace_id = client, request.trace_id
        with client.model_call("nightschool", messages, provider="vllm", max_tokens=_MAX_TOKENS) as call:
            _ask_serving(visit, messages, call.headers)
            body = visit.answer.json()
            if (choice := visit.choice()) is not None and isinstance(body, dict):
                message = choice.get("message")
                visit.said = str(message.get("content") or "") if isinstance(message, dict) else ""
                visit.response_id = body["id"] if isinstance(body.get("id"), str) else None
                call.respond(body)
            else:  # the other hops can still be checked
                visit.said = "(serving did not answer)"
                call.answer(visit.said)
    return Passed(f"trace {visit.trace_id}")


def _ask_serving(visit: Visit, messages: list[dict[str, str]], headers: Mapping[str, str]) -> None:
    body = json.dumps({"model": "nightschool", "messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0}).encode()
    sent = {**_SEND, "Authorization": f"Bearer {visit.key}", **headers}
    started = time.time_ns()
    visit.answer = ask("POST", visit.serving, "/v1/chat/completions", body=body, headers=sent, timeout_s=ANSWER_TIMEOUT_S)
    visit.asked_ns = (started, time.time_ns())


def check_acknowledgement(visit: Visit) -> Passed:
    in_time, spans = visit.client.flush(FLUSH_TIMEOUT_S), visit.client.stats().spans
    visit.acknowledged_ms = time.time_ns() // 1_000_000
    if lost := spans.rejected + spans.dropped + spans.invalid:
        raise BrokenHopError(
            f"{lost} spans were refused for good ({spans})",
            f"POST {visit.collector}/v1/traces must reach the collector, large bodies too; its log and /metrics say what it refused",
        )
    if not in_time or not spans.sent:
        now = _said(_post_nothing(visit, visit.key))
        raise BrokenHopError(
            f"no acknowledgement within {FLUSH_TIMEOUT_S:.0f} s ({spans}, {visit.client.stats().retries} retries);"
            f" an empty request is answered {now}",
            "it asks to try again: collector or proxy is overloaded, or the stream is away; look at their logs",
        )
    return Passed(f"{spans.sent} spans are durable")


def check_record(visit: Visit) -> Passed:
    there = visit.follower.wait(visit.marks, lambda found: bool(visit.calls("app", found)), timeout_s=visit.options.wait_s)
    if not there:
        raise BrokenHopError(
            f"the spans were acknowledged but are not in {visit.config.stream.url}",
            "the collector writes to another stream: start it with this nightschool.toml",
        )
    record, _ = visit.calls("app")[0]
    _check_tenant(visit, [record])
    whose = (
        f"of tenant {visit.tenant}"
        if names.HEADER_TENANT in record.headers
        else "without our header: its resource names the tenant"
    )
    return Passed(f"{record.topic} partition {record.partition}, offset {record.offset}, {whose}")


def _check_tenant(visit: Visit, records: Iterable[StoredRecord]) -> None:
    for record in records:
        header = record.headers.get(names.HEADER_TENANT, visit.tenant.encode()).decode(errors="replace")
        if header != visit.tenant:
            raise BrokenHopError(
                f"the record of {record.topic} is filed under tenant {header!r}, not {visit.tenant!r}",
                f"the collector gives this key to {header!r}: start it with this nightschool.toml",
            )


def check_content(visit: Visit) -> Passed:
    _, row = visit.calls("app")[0]
    messages, answers = context_of(row.attributes), read_messages(row.attributes.get(names.GEN_AI_OUTPUT_MESSAGES))
    arrived = {
        "messages": bool(messages) and messages is not None and messages[-1].text == QUESTION,
        "answer": bool(answers) and answers is not None and answers[0].text == visit.said,
        "task": row.task == names.DOCTOR_TASK,
        "user": row.subject is not None and row.subject != USER,
        "conversation": row.conversation is not None,
    }
    if missing := _missing(arrived):
        if not visit.client.captures_content(names.DOCTOR_TASK):
            said = os.environ.get(CAPTURE_VARIABLE)
            fix = f"{CAPTURE_VARIABLE} is {said} here: unset it, or let the app record texts by capture_content=True"
        elif row.attributes.get(names.REDACTION_VERSION):
            fix = "redaction changed or dropped it: look at the [privacy] settings"
        else:
            fix = "something between app and stream drops attributes; content capture must be on for the task"
        raise BrokenHopError(f"not as sent: {missing}", fix, arrived)
    return Passed("all of it is as it was sent; the user as a pseudonym", arrived)


# --- serving --------------------------------------------------------------------------------------------------------------
_SERVING_FIXES = {
    401: "restart serving: it runs with another nightschool.toml than this one",
    403: "restart serving: it runs with another nightschool.toml than this one",
    404: "point --serving at a server that 'nightschool serve' started: this one does not know the model 'nightschool'",
    503: "wait until serving has loaded, or look at its log: it says which release it refused and why",
}


def check_serving(visit: Visit) -> Passed:
    answer = visit.answer
    if answer.status == 0:
        start = f"start it: nightschool serve --config {visit.options.config}; or say where it is: --serving URL"
        raise BrokenHopError(f"no answer from {visit.serving}: {answer.reason}", start)
    if answer.status != 200:
        raise BrokenHopError(
            f"{visit.serving} answers {answer.said}", _SERVING_FIXES.get(answer.status, "look at the log of serving")
        )
    if visit.choice() is None or not visit.response_id:
        raise BrokenHopError(
            f"{visit.serving} answers, but not with a chat completion that has an id: {answer.said}",
            "point --serving at a server that 'nightschool serve' started",
        )
    seconds = (visit.asked_ns[1] - visit.asked_ns[0]) / 1e9
    return Passed(f"{visit.serving} answered in {seconds:.1f} s")


def check_release(visit: Visit) -> Passed:
    release = visit.answer.headers.get(names.RELEASE_RESPONSE_HEADER)
    if release is None:
        raise BrokenHopError(
            f"the answer has no {names.RELEASE_RESPONSE_HEADER} header",
            "the server is no 'nightschool serve', or a proxy removes the header; without it nobody knows which release answered",
        )
    pointer = Registry(visit.config.registry.path).pointer(visit.tenant)
    wanted = {pointer.stable or names.BASE_RELEASE, pointer.canary} - {None}
    if release not in wanted:
        raise BrokenHopError(
            f"{release[:12]} answered, but the registry points at {' or '.join(sorted(str(one)[:12] for one in wanted))}",
            f"GET {visit.serving}/nightschool/v1/releases says what serving refused; its [registry] path must be this one",
        )
    return Passed(f"{release[:12]} answered, as the registry says")


def check_server_span(visit: Visit) -> Passed:
    there = visit.follower.wait(visit.marks, lambda found: bool(visit.calls("server", found)), timeout_s=visit.options.wait_s)
    if not there:
        to = visit.config.serving.collector
        fix = (
            f"serving sends to {to}, the doctor looked behind {visit.collector}; the log of serving says what became of its spans"
        )
        raise BrokenHopError(
            f"no span of serving in the stream within {visit.options.wait_s:.0f} s",
            fix if to else "set [serving] collector: it is empty, so serving sends no spans",
        )
    record, row = visit.calls("server")[0]
    _check_tenant(visit, [record])
    _, app = visit.calls("app")[0]
    if row.trace_id != app.trace_id:
        return Passed("there, though not in the app's trace: a proxy drops the traceparent header; the response id joins them")
    return Passed("there, and in the app's trace")


def check_tokens(visit: Visit) -> Passed:
    _, row = visit.calls("server")[0]
    prompt, ids, logprobs = (
        row.attributes.get(name) for name in (names.PROMPT_TOKEN_IDS, names.COMPLETION_TOKEN_IDS, names.COMPLETION_LOGPROBS)
    )
    arrived = {
        "prompt token ids": _is_list_of(prompt, int),
        "completion token ids": _is_list_of(ids, int),
        "log-probabilities": _is_list_of(logprobs, (int, float)) and all(map(math.isfinite, logprobs or [])),
        "release": isinstance(row.attributes.get(names.RELEASE), str),
    }
    if missing := _missing(arrived):
        raise BrokenHopError(
            f"the server's span lacks: {missing}",
            "serve with 'nightschool serve' of this version; ids are dropped where redaction changed the text",
            arrived,
        )
    if len(ids or []) != len(logprobs or []):
        raise BrokenHopError(
            f"{len(ids or [])} token ids but {len(logprobs or [])} log-probabilities",
            "report this: serving must record one of each",
        )
    ours = describe_file(base_model_folder(visit.config.model.path) / "tokenizer.json").sha256
    if row.attributes.get(names.TOKENIZER, ours) != ours:
        raise BrokenHopError(
            "the token ids are of another tokenizer than that of [model] path, and nights would not use them",
            "serve the base model that this nightschool.toml names",
        )
    return Passed(f"{len(prompt or [])} prompt tokens, {len(ids or [])} sampled, each with its log-probability", arrived)


def _is_list_of(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)


# --- outcome --------------------------------------------------------------------------------------------------------------
def send_outcome(visit: Visit) -> Passed:
    """Say how the marked request turned out, as an app does, about the response if there is one: each outcome a rubric reads."""
    target = {"response_id": visit.response_id} if visit.response_id else {"trace_id": visit.trace_id}
    for name, event_id in visit.outcome_ids.items():
        visit.client.outcome(name, final_text=visit.final_text, rater=RATER, event_id=event_id, **target)  # type: ignore[arg-type]
    in_time, outcomes = visit.client.flush(FLUSH_TIMEOUT_S), visit.client.stats().outcomes
    if lost := outcomes.rejected + outcomes.dropped + outcomes.invalid:
        raise BrokenHopError(
            f"{lost} of {len(visit.outcome_ids)} outcomes were refused for good ({outcomes})",
            f"POST {visit.collector}/v1/outcomes must be our collector's; the OpenTelemetry Collector has no such route",
        )
    if not in_time or not outcomes.sent:
        raise BrokenHopError(f"no acknowledgement within {FLUSH_TIMEOUT_S:.0f} s ({outcomes})", "look at the collector's log")
    return Passed(f"durable: {', '.join(visit.outcome_ids)}")


def check_outcome_record(visit: Visit) -> Passed:
    event_ids = [event_id.encode() for event_id in visit.outcome_ids.values()]

    def are_there(found: Sequence[StoredRecord]) -> bool:
        said = [record.value for record in found if record.topic == names.TOPIC_OUTCOMES]
        return all(any(event_id in value for value in said) for event_id in event_ids)

    if not visit.follower.wait(visit.marks, are_there, timeout_s=visit.options.wait_s):
        raise BrokenHopError(
            f"outcomes were acknowledged but are not in {visit.config.stream.url}",
            "outcomes go to another collector than spans; send both to the same",
        )
    records = visit.follower.of(names.TOPIC_OUTCOMES)
    _check_tenant(visit, records)
    return Passed(f"{records[0].topic} partition {records[0].partition}, offset {records[0].offset}")


# --- episode --------------------------------------------------------------------------------------------------------------
def build_episode(visit: Visit) -> Passed:
    """Let the nights' own episode builder read what arrived, and nothing else, by the tenant's erasures and redaction."""
    redactor = redactors(visit.config).get(visit.tenant)
    stream = visit.follower.stream
    visit.manifest = _manifest(visit, [*_ranges_of(visit.follower.found), *_erasures_in(stream)])
    with tempfile.TemporaryDirectory(prefix="nightschool-") as work:
        store = EpisodeStore(Path(work))
        try:
            store.build(RedactedStream(stream, redactor) if redactor else stream, visit.manifest)
            built = [item.episode for item in store.episodes(visit.tenant)]
        finally:
            store.close()
    visit.left_out = dict(sorted(store.counts.dropped.items()))
    ours = [episode for episode in built if episode.trace_id == visit.trace_id]
    if not ours:
        raise BrokenHopError(f"the records make no episode: {_counted(visit.left_out)}", _remedies(visit))
    visit.episode = ours[0]
    call = visit.episode.calls[-1]
    arrived = {
        "content": call.messages[-1].text == QUESTION,
        "answer": call.answer.text == visit.said,
        "task": visit.episode.task == names.DOCTOR_TASK,
        "user": visit.episode.subject is not None,
        "conversation": visit.episode.conversation is not None,
    }
    if missing := _missing(arrived):
        raise BrokenHopError(
            f"the episode lacks, or has changed: {missing}",
            "the records hold it, and a night redacts what no collector of ours did: look at the [privacy] settings",
            arrived,
        )
    return Passed(f"one episode, {len(visit.episode.calls)} model call", arrived)


def _ranges_of(records: Iterable[StoredRecord]) -> list[FrozenRange]:
    """A range for each of `records`, in an order that is always the same."""
    places = sorted((record.topic, record.partition, record.offset) for record in records)
    return [FrozenRange(topic, "", partition, offset, offset, offset + 1) for topic, partition, offset in places]


def _erasures_in(stream: Stream) -> list[FrozenRange]:
    """All erasures so far, as a night freezes them."""
    ends = stream.end_offsets(names.TOPIC_ERASURE)
    return [FrozenRange(names.TOPIC_ERASURE, "", partition, 0, 0, end) for partition, end in sorted(ends.items())]


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in reasons.items()) or "nothing was left out"


def _remedies(visit: Visit) -> str:
    """What to do about everything that was left out."""
    if any(name.startswith("erased-") for name in visit.left_out):
        undo = f"nightschool forget --tenant {visit.tenant} --user {USER} --undo"
        return f"the doctor's own user was asked to be forgotten; no app has it. To examine again: {undo}"
    return "; ".join(f"{name}: {explain(name).remedy}" for name in visit.left_out) or "report this"


def _manifest(visit: Visit, ranges: Sequence[FrozenRange]) -> NightManifest:
    """The manifest of a night that would read `ranges` and nothing else; it decides nothing, and no night ever sees it."""
    now_ms = time.time_ns() // 1_000_000
    return NightManifest(
        tenant=visit.tenant,
        ranges=tuple(ranges),
        settings={"outcome_window": visit.config.night.outcome_window},
        dtype=visit.config.model.dtype,
        base_model=BaseModel("0" * 64, "0" * 64, "0" * 64),
        rubrics={},
        pointer=Pointer(),
        frozen_at_ms=now_ms,
        settles_after_ms=settling_of(visit.config, visit.rubrics),
        as_of_ms=now_ms - now_ms % HOUR_MS,
    )


def check_join(visit: Visit) -> Passed:
    call = visit.episode.calls[-1]
    arrived = {
        "token ids": call.tokens is not None,
        "log-probabilities": call.tokens is not None,
        "release": call.release is not None,
    }
    if missing := _missing(arrived):
        raise BrokenHopError(
            f"not joined to the app's call: {missing}",
            "app and server must name the same response id; let the app record the id that the server answered with",
            arrived,
        )
    return Passed("the server's tokens and release are on the app's call", arrived)


def check_outcome_join(visit: Visit) -> Passed:
    said = {history.current.name: history.current.final_text for history in visit.episode.outcomes}
    arrived = {name: name in said for name in visit.outcome_ids}
    if missing := _missing(arrived):
        raise BrokenHopError(f"not joined to their episode: {missing} ({_counted(visit.left_out)})", _remedies(visit), arrived)
    if changed := sorted(name for name in visit.outcome_ids if said[name] != visit.final_text):
        raise BrokenHopError(
            f"another text than was sent: {', '.join(changed)}", "redaction changed it: look at the [privacy] settings", arrived
        )
    return Passed(f"on the episode: {', '.join(visit.outcome_ids)}", arrived)


def check_selection(visit: Visit) -> Passed:
    """As if the marked request were the app's: the doctor's own task is left out of every night."""
    model = visit.config.model.path
    digest = describe_file(base_model_folder(model) / "tokenizer.json").sha256
    for task in sorted(visit.rubrics):
        fates: list[Example | Drop] = []
        select_examples(
            [BuiltEpisode(replace(visit.episode, task=task), new=True)],
            tenant=visit.tenant,
            settings=visit.config.night,
            rubrics=visit.rubrics,
            tokenizer=_Tokenizer(model),
            max_model_len=visit.config.serving.max_model_len,
            tokenizer_digest=digest,
            lateness=lateness_of(visit.manifest),
            watch=lambda _, fate, fates=fates: fates.append(fate),  # type: ignore[misc]
        )
        if isinstance(fates[0], Drop):
            reason = explain(fates[0])
            raise BrokenHopError(
                f"as an episode of task {task} it would be left out: {fates[0]}, {reason.meaning}", reason.remedy
            )
    return Passed(f"it would be learned from as an episode of: {', '.join(sorted(visit.rubrics))}; being the doctor's, it is not")


class _Tokenizer:
    """The base model's tokenizer, loaded only when it is asked, which is where serving recorded no tokens."""

    def __init__(self, model: str) -> None:
        self._model = model

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(base_model_folder(self._model)).apply_chat_template(conversation, **options)


def check_clocks(visit: Visit) -> Passed:
    record, _ = visit.calls("app")[0]
    received = record.headers.get(names.HEADER_RECEIVED_MS, b"")
    skews = {"stream": _outside(record.timestamp_ms, visit.sent_ms, visit.acknowledged_ms)}
    if received.isdigit():
        skews["collector"] = _outside(int(received), visit.sent_ms, visit.acknowledged_ms)
    if servers := visit.calls("server"):
        first, last = (moment // 1_000_000 for moment in visit.asked_ns)
        skews["serving"] = _outside(servers[0][1].started_ns // 1_000_000, first, last)
    text = ", ".join(f"{name} {skew / 1000:+.1f} s" for name, skew in skews.items())
    if any(abs(skew) > _MAX_SKEW_MS for skew in skews.values()):
        raise BrokenHopError(
            f"clocks differ from this machine's: {text}", "set the clocks (NTP): corrections of outcomes are ordered by time"
        )
    return Passed(f"differences from this machine's clock: {text}")


def _outside(moment: int, first: int, last: int) -> int:
    """How far `moment` lies before `first` or after `last`; 0 between them."""
    return min(0, moment - first) + max(0, moment - last)


def _missing(arrived: Mapping[str, bool]) -> str:
    return ", ".join(name for name, is_there in arrived.items() if not is_there)


STEPS = (
    Step(Hop.CONFIGURATION, check_configuration),
    Step(Hop.KEY, check_key, (Hop.CONFIGURATION,)),
    Step(Hop.COLLECTOR, check_collector, (Hop.CONFIGURATION,)),
    Step(Hop.AUTHENTICATION, check_authentication, (Hop.KEY, Hop.COLLECTOR)),
    Step(Hop.STREAM, check_stream, (Hop.CONFIGURATION,)),
    Step(Hop.TRACER, send_marked_request, (Hop.KEY,)),
    Step(Hop.ACKNOWLEDGEMENT, check_acknowledgement, (Hop.TRACER, Hop.AUTHENTICATION)),
    Step(Hop.RECORD, check_record, (Hop.ACKNOWLEDGEMENT, Hop.STREAM)),
    Step(Hop.CONTENT, check_content, (Hop.RECORD,)),
    Step(Hop.SERVING, check_serving, (Hop.TRACER,)),
    Step(Hop.RELEASE, check_release, (Hop.SERVING,)),
    Step(Hop.SERVER_SPAN, check_server_span, (Hop.SERVING, Hop.RECORD)),
    Step(Hop.TOKENS, check_tokens, (Hop.SERVER_SPAN,)),
    Step(Hop.OUTCOME, send_outcome, (Hop.ACKNOWLEDGEMENT,)),
    Step(Hop.OUTCOME_RECORD, check_outcome_record, (Hop.OUTCOME, Hop.STREAM)),
    Step(Hop.EPISODE, build_episode, (Hop.CONTENT,)),
    Step(Hop.JOIN, check_join, (Hop.EPISODE, Hop.TOKENS)),
    Step(Hop.OUTCOME_JOIN, check_outcome_join, (Hop.EPISODE, Hop.OUTCOME_RECORD)),
    Step(Hop.SELECTION, check_selection, (Hop.JOIN, Hop.OUTCOME_JOIN)),
    Step(Hop.CLOCKS, check_clocks, (Hop.RECORD,)),
)
"""Every hop, in the order in which a request travels."""
