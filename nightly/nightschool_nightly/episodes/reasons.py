"""Every reason for which a night leaves something out: one table, which code, SQL, reports and commands all use."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

_AS_IT_SHOULD_BE = "nothing: this is how it should be"


class DropReason(StrEnum):
    """Why something was left out. The value is the name that reports, dashboards and `nightschool episodes` show."""

    meaning: str
    """What was left out and why, in one line for a person."""
    remedy: str
    """What to do about it, in one line."""

    def __new__(cls, name: str, meaning: str, remedy: str = _AS_IT_SHOULD_BE) -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning, member.remedy = meaning, remedy
        return member

    # --- records, while the frozen ranges are read
    RECORD_WITHOUT_TENANT = (
        "record-without-tenant",
        "a record has no tenant header and its resource does not name one tenant",
        "set the resource attribute nightschool.tenant.id in the collector that wrote it",
    )
    UNDECODABLE_SPAN_RECORD = (
        "undecodable-span-record",
        "a span record is not OTLP protobuf; a night keeps a copy in ns.dlq",
        "find out what else writes to the topic",
    )
    UNDECODABLE_LOG_RECORD = (
        "undecodable-log-record",
        "a log record is not OTLP protobuf, or an outcome in it is not valid; a night keeps a copy in ns.dlq",
        "find out what else writes to the topic",
    )
    UNDECODABLE_OUTCOME_RECORD = (
        "undecodable-outcome-record",
        "a record of the outcomes topic holds something that is not a valid outcome; a night keeps a copy in ns.dlq",
        "find out what else writes to the topic",
    )
    UNKNOWN_DIALECT = (
        "unknown-dialect",
        "a span looks like a model call, but no dialect reads what its instrumentation (named in brackets) writes",
        "use an instrumentation that docs/dialects.md names, or report it with one of its spans",
    )
    ERASED_SPAN = ("erased-span", "a span of a user who asked to be forgotten, or of their conversation")
    ERASED_EVENT = ("erased-event", "a log record of a call of a user who asked to be forgotten")
    ERASED_OUTCOME = (
        "erased-outcome",
        "an outcome that a user who asked to be forgotten gave, or that is about a trace of theirs",
    )

    # --- copies and outcomes, while records are joined
    DUPLICATE_SPAN = ("duplicate-span", "the same span came twice, as an exporter that retries sends it")
    DUPLICATE_EVENT = ("duplicate-event", "the same message event came twice, as an exporter that retries sends it")
    DUPLICATE_OUTCOME = ("duplicate-outcome", "the same outcome came twice, as a client that retries sends it")
    CALL_RECORDED_TWICE = (
        "call-recorded-twice",
        "two instrumentations recorded one call (a span inside the other, or the same response id);"
        " the inner one with content counts",
        "nothing, or turn one of them off",
    )
    EVENT_WITHOUT_CALL = (
        "event-without-call",
        "a log record holds a message of a model call, but the span of that call is missing, sampled away or not of an answered call",
        "keep every span of the calls whose messages are logged (no sampling before this stream)",
    )
    EVENT_ID_USED_TWICE = (
        "event-id-used-twice",
        "an outcome has the event id of an earlier one and says something else; the earlier one counts",
        "give every outcome an event_id of its own, a correction too",
    )
    OUTCOME_WITHOUT_TRACE = (
        "outcome-without-trace",
        "an outcome names a trace, response, episode, conversation or join key that no model call has yet",
        "send response_id or trace_id of the answer it is about; it joins as soon as its trace is there",
    )
    ORPHANED_OUTCOME = (
        "orphaned-outcome",
        "an outcome waited [night] outcome_window for its trace, which never came",
        "see which app sends it and whether its traces reach the collector; the key of a wrong tenant is the usual cause",
    )
    AMBIGUOUS_OUTCOME = (
        "ambiguous-outcome",
        "what an outcome names is the name of several traces",
        "name the response or the trace, or the turn of the conversation",
    )
    RETRACTED_OUTCOME = ("retracted-outcome", "an outcome was taken back by whoever gave it")

    # --- calls, while episodes are put together
    CALL_WITHOUT_CONTENT = (
        "call-without-content",
        "the messages or the answer of a model call were not captured, or a server's span found no span of an app to join",
        "turn content capture on in the app's tracer; a server span alone never has content",
    )
    TOKEN_IDS_OF_REDACTED_CALL = (
        "token-ids-of-redacted-call",
        "not the call: only its recorded token ids, which still spell the redacted text; its messages are rendered instead",
    )
    EDIT_NOT_MEASURED = (
        "edit-not-measured",
        "not the outcome: only its edit distance; no answer has its original_sha256, or the texts are too long to compare",
        "send the SHA-256 of the answer as the model gave it, or send none",
    )

    # --- episodes and examples, while a night chooses
    SEEN = (
        "seen-by-an-earlier-night",
        "an earlier night has read the episode, and nothing that could be learned from it is left",
    )
    DOCTOR = ("doctor", "a marked request of 'nightschool doctor', not traffic of the app")
    NO_RUBRIC = (
        "task-without-rubric",
        "the tenant has no rubric for the episode's task",
        "add a rubric for the task, or mark the request with the right task",
    )
    NOT_TEXT_ANSWER = (
        "answer-is-not-text",
        "the last answer called a tool or holds more than text",
        "nothing yet: only text answers are learned from",
    )
    NOT_TEXT_PROMPT = (
        "message-is-not-text",
        "a message of the context holds more than text, and the server recorded no token ids",
        "serve with 'nightschool serve', which records the token ids",
    )
    NOT_CHAT = (
        "completion-without-token-ids",
        "a bare completion without token ids of this base model's tokenizer; a chat template would make another prompt of it",
        "serve with 'nightschool serve', which records the token ids, or ask with chat completions",
    )
    NO_TEMPLATE = (
        "refused-by-chat-template",
        "the base model's chat template refuses the conversation, for example a role it does not know",
        "use the roles and the order of messages that the template knows",
    )
    NO_OUTCOME = (
        "no-outcome",
        "no outcome says what the right answer was; that is not counted as a bad answer",
        "send outcomes under the names the rubric reads",
    )
    OUTCOME_WITHOUT_TEXT = (
        "outcome-without-text",
        "the outcome is a thumb, a rating or another value that says how good the answer was, not what the right one is;"
        " such outcomes cannot be learned from yet",
        "send what the right answer was under the name the rubric reads: an edit, or a value that is a text",
    )
    UNREAD_OUTCOME = (
        "unread-outcome",
        "an outcome has a name (in brackets) that the rubric of its task does not read; its episode may have others",
        "correct the name in the app or in the rubric; 'nightschool config --check' lists the names that rubrics read",
    )
    UNSETTLED = (
        "outcome-not-settled",
        "an outcome is younger than [outcomes.NAME] settles_after and may still be corrected",
        "nothing: a later night learns from it; shorten settles_after to wait less",
    )
    CONFLICT = (
        "conflicting-outcomes",
        "two raters chose differently",
        "let one person decide: send the outcome under one rater, or under another name",
    )
    REQUEST_REFUSED = (
        "request-parameter-refused",
        "a parameter of the request (named in brackets) has a value that vLLM refuses, so no night can sample as it says",
        "look at what the app sends: stop texts may not be empty, temperature is 0 to 2, top_p above 0",
    )
    REQUEST_NOT_REPLAYED = (
        "request-parameter-not-replayed",
        "the request sets a parameter (named in brackets) that changes what is sampled and that a night does not pass on",
        "leave the parameter out where learning is wanted",
    )
    TOO_LONG = (
        "prompt-too-long",
        "the prompt leaves no room for an answer in [serving] max_model_len",
        "raise max_model_len, or shorten what the app sends",
    )
    DUPLICATE = (
        "duplicate-prompt",
        "another example of this night has the same prompt; a prompt counts once, and stands on one side of the split",
    )
    TRAINED_PROMPT = (
        "prompt-trained-before",
        "a user who only tests sent a prompt that an earlier night trained on; an answer to it shows nothing",
    )
    USER_SHARE = (
        "over-share-of-one-user",
        "the user already has [night] max_share_per_user of the prompts",
        "wait for more users, or raise the share",
    )
    NOT_SAMPLED = (
        "left-for-a-later-night",
        "the night has as many prompts as its steps sample; a later night may learn from it while the stream keeps it",
        "nothing; raise [night] steps or prompts_per_step to learn from more of a day",
    )
    OTHER_TOKENIZER = (
        "tokens-of-another-tokenizer",
        "not the episode: only its recorded token ids, whose tokenizer is not this base model's or is not known;"
        " its messages are rendered instead",
        "nothing; after a change of the base model it passes by itself",
    )


_BY_NAME = {reason.value: reason for reason in DropReason}
_MAX_NAME = 40  # characters; a longer name is no parameter of an API


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why one thing was left out, and what it was about where the reason alone does not say it."""

    reason: DropReason
    name: str = ""
    """The name of what the reason is about, as a client chose it."""

    def __str__(self) -> str:
        """The name under which it is counted; a name that is not a plain one is counted as one of the others."""
        if not self.name:
            return str(self.reason)
        return f"{self.reason} ({self.name if self.name.isidentifier() and len(self.name) <= _MAX_NAME else 'others'})"


def reason_of(name: str) -> DropReason:
    """The reason behind a counted name; some names add in brackets who it was: `unknown-dialect (NAME)`."""
    return _BY_NAME[name.partition(" (")[0]]
