"""What each reason for leaving something out means, and what to do about it: one line of each, for a person."""

from __future__ import annotations

from typing import NamedTuple

from nightschool_nightly.examples.example import Drop


class Reason(NamedTuple):
    """A reason in words."""

    meaning: str
    remedy: str


_FINE = "nothing: this is how it should be"

REASONS: dict[str, Reason] = {
    # --- records
    "record-without-tenant": Reason(
        "a record has no tenant header and its resource does not name one tenant",
        "set the resource attribute nightschool.tenant.id in the collector that wrote it",
    ),
    "undecodable-span-record": Reason(
        "a span record is not OTLP protobuf; a night keeps it aside in ns.dlq", "look at what else writes to the topic"
    ),
    "undecodable-log-record": Reason(
        "a log record is not OTLP protobuf, or an outcome in it is none; a night keeps it aside in ns.dlq",
        "look at what else writes to the topic",
    ),
    "undecodable-outcome-record": Reason(
        "a record of the outcomes topic holds what is no outcome; a night keeps it aside in ns.dlq",
        "look at what else writes to the topic",
    ),
    "duplicate-event": Reason("the same message event came twice, as an exporter that retries sends it", _FINE),
    "duplicate-span": Reason("the same span came twice, as an exporter that retries sends it", _FINE),
    "duplicate-outcome": Reason("the same outcome came twice, by its event id or its content", _FINE),
    "erased-span": Reason("a span of a user who asked to be forgotten, or of their conversation", _FINE),
    "erased-event": Reason("a log record of a call of theirs", _FINE),
    "erased-outcome": Reason("an outcome they gave, or of a trace of theirs", _FINE),
    # --- outcomes
    "outcome-without-trace": Reason(
        "an outcome names a trace, response, episode, conversation or join key that no model call has yet",
        "send response_id or trace_id of the answer it is about; it joins as soon as its trace is there",
    ),
    "orphaned-outcome": Reason(
        "an outcome waited [night] outcome_window for its trace, which never came",
        "see which app sends it and whether its traces reach the collector; a wrong tenant's key is the usual cause",
    ),
    "event-id-used-twice": Reason(
        "an outcome has the event id of an earlier one and says something else; the earlier one counts",
        "give every outcome an event_id of its own, a correction too",
    ),
    "edit-not-measured": Reason(
        "not the outcome: its edit distance, because no answer has its original_sha256, or the texts are too long to compare",
        "send the SHA-256 of the answer as the model gave it, or none",
    ),
    "ambiguous-outcome": Reason(
        "an outcome names what several traces have", "name the response or the trace, or the turn of the conversation"
    ),
    "retracted-outcome": Reason("whoever gave an outcome took it back", _FINE),
    # --- calls
    "unknown-dialect": Reason(
        "a span looks like a model call, but its instrumentation (named in brackets) speaks no dialect that is read here",
        "use an instrumentation that docs/dialects.md names, or report it with one of its spans",
    ),
    "call-recorded-twice": Reason(
        "two instrumentations recorded one call (a span inside the other, or the same response id); the inner with content counts",
        "nothing, or turn one of them off",
    ),
    "event-without-call": Reason(
        "a log record holds a message of a model call whose span is not there, is no answered call, or was sampled away",
        "keep every span of the calls whose messages are logged (no sampling before this stream)",
    ),
    "call-without-content": Reason(
        "a model call's messages or answer were not captured, or no server span was joined to an app's",
        "turn content capture on in the app's tracer; a server span alone never has content",
    ),
    "token-ids-of-redacted-call": Reason(
        "not the call: its recorded token ids, which still spell what was redacted; its messages were rendered instead", _FINE
    ),
    # --- episodes
    Drop.SEEN: Reason("nothing of the episode is new since the last published night", _FINE),
    Drop.DOCTOR: Reason("a marked request of 'nightschool doctor'", _FINE),
    Drop.NO_RUBRIC: Reason(
        "the tenant has no rubric for the episode's task", "add a rubric for the task, or mark the request with the right task"
    ),
    Drop.NOT_TEXT_ANSWER: Reason(
        "the last answer called a tool or holds more than text", "nothing yet: only text answers are learned from"
    ),
    Drop.NOT_TEXT_PROMPT: Reason(
        "a message of the context holds more than text, and the server recorded no token ids",
        "serve with 'nightschool serve', which records the token ids",
    ),
    Drop.NOT_CHAT: Reason(
        "a bare completion without token ids of this base model's tokenizer; a chat template would make another prompt of it",
        "serve with 'nightschool serve', which records the token ids, or ask with chat completions",
    ),
    Drop.NO_TEMPLATE: Reason(
        "the base model's chat template has no spelling for the conversation",
        "use the roles and the order of messages that the template knows",
    ),
    Drop.NO_OUTCOME: Reason(
        "nobody said how it turned out; that is no bad grade", "send outcomes under the names the rubric reads"
    ),
    Drop.UNSETTLED: Reason(
        "what somebody said is younger than [outcomes.NAME] settles_after and may still be corrected",
        "nothing: a later night learns from it; shorten settles_after to wait less",
    ),
    Drop.CONFLICT: Reason(
        "two raters chose differently", "let one person's word count: send it under one rater, or another name"
    ),
    Drop.TOO_LONG: Reason(
        "prompt and answer do not fit [serving] max_model_len", "raise max_model_len, or shorten what the app sends"
    ),
    Drop.DUPLICATE: Reason("another example of this night has the same prompt", _FINE),
    Drop.USER_SHARE: Reason(
        "the user already has [night] max_share_per_user of the prompts", "wait for more users, or raise the share"
    ),
    Drop.OTHER_TOKENIZER: Reason(
        "not the episode: its recorded token ids, which are not of this base model's tokenizer; its messages were rendered instead",
        "nothing; after a change of the base model it passes by itself",
    ),
}


def explain(reason: str) -> Reason:
    """The reason in words; one that has none here yet says so."""
    kind = reason.partition(" (")[0]  # some say in brackets who it was
    return REASONS.get(kind, Reason("a reason without a description here", "search the documentation for its name"))
