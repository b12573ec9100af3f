"""Hops of the serving endpoint: its answer, the release, its span with the sampled tokens."""

from __future__ import annotations

import math
from typing import Any

from nightschool import semconv as names
from nightschool.registry.base_model import base_model_folder
from nightschool.registry.folder import Registry
from nightschool.registry.release import describe_file
from nightschool_nightly.doctor.findings import BrokenHopError, Passed
from nightschool_nightly.doctor.hops.shared import check_tenant, missing_of
from nightschool_nightly.doctor.visit import Visit

_SERVING_FIXES = {
    401: "restart serving: it runs with another nightschool.toml than this one",
    403: "restart serving: it runs with another nightschool.toml than this one",
    404: "point --serving at a server that 'nightschool serve' started: this one does not know the model 'nightschool'",
    503: "wait until serving has loaded, or look at its log: it says which release it refused and why",
}


def check_serving(visit: Visit) -> Passed:
    """The marked request got a chat completion with an id."""
    answer = visit.answer
    if answer.status == 0:
        start = f"start it: nightschool serve --config {visit.options.config}; or say where it is: --serving URL"
        raise BrokenHopError(f"no answer from {visit.serving}: {answer.reason}", start)
    if answer.status != 200:
        raise BrokenHopError(
            f"{visit.serving} answers {answer.summary}", _SERVING_FIXES.get(answer.status, "look at the log of serving")
        )
    if visit.choice() is None or not visit.response_id:
        raise BrokenHopError(
            f"{visit.serving} answers, but not with a chat completion that has an id: {answer.summary}",
            "point --serving at a server that 'nightschool serve' started",
        )
    seconds = (visit.asked_ns[1] - visit.asked_ns[0]) / 1e9
    return Passed(f"{visit.serving} answered in {seconds:.1f} s")


def check_release(visit: Visit) -> Passed:
    """The answer names its release, and the registry points at that release."""
    release = visit.answer.headers.get(names.RELEASE_RESPONSE_HEADER)
    if release is None:
        raise BrokenHopError(
            f"the answer has no {names.RELEASE_RESPONSE_HEADER} header",
            "the server is not 'nightschool serve', or a proxy removes the header; without it the app cannot know which release answered",
        )
    pointer = Registry(visit.config.registry.path).pointer(visit.tenant)
    wanted = {pointer.stable or names.BASE_RELEASE, pointer.canary} - {None}
    if release not in wanted:
        raise BrokenHopError(
            f"{release[:12]} answered, but the registry points at {' or '.join(sorted(str(one)[:12] for one in wanted))}",
            f"GET {visit.serving}/nightschool/v1/releases says what serving refused; its [registry] path must be that of this file",
        )
    return Passed(f"{release[:12]} answered, as the registry says")


def check_server_span(visit: Visit) -> Passed:
    """Serving's own span of the marked request comes into the stream in time, under the tenant."""
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
    check_tenant(visit, [record])
    _, app = visit.calls("app")[0]
    if row.trace_id != app.trace_id:
        return Passed("there, though not in the app's trace: a proxy drops the traceparent header; the response id joins them")
    return Passed("there, and in the app's trace")


def check_tokens(visit: Visit) -> Passed:
    """That span holds what was sampled, in ids of the configured base model's tokenizer."""
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
    if missing := missing_of(arrived):
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
