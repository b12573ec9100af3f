"""The episode: one trace as training material, whatever dialect it was recorded in.

It is built from stored OTLP when that is read (`nightschool_nightly.episodes`); no service stores one. Parts follow the
message JSON schema of the OpenTelemetry GenAI conventions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nightschool.outcomes.record import Outcome


@dataclass(frozen=True, slots=True)
class TextPart:
    """Plain text (`type: text`)."""

    content: str


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """The model asked for a tool (`type: tool_call`)."""

    name: str
    id: str | None = None
    arguments: Any = None


@dataclass(frozen=True, slots=True)
class ToolResponsePart:
    """What the tool returned (`type: tool_call_response`)."""

    response: Any
    id: str | None = None


@dataclass(frozen=True, slots=True)
class OtherPart:
    """Any other part, as it came: reasoning, blob, file, uri, compaction, or a kind not known yet."""

    raw: Mapping[str, Any]


Part = TextPart | ToolCallPart | ToolResponsePart | OtherPart


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    parts: tuple[Part, ...]
    name: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.content for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What the server sampled, token by token."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural logarithm of each completion token's probability under the policy that sampled it; one for each id."""
    tokenizer: str | None = None
    """SHA-256 of the tokenizer.json that the ids belong to; None when the server did not say."""


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One model call inside an episode: what the app saw, joined with what the server recorded."""

    span_id: str
    messages: tuple[Message, ...]
    """The context the model was given."""
    answer: Message
    response_id: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    request: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the request that may change what is sampled, as they were sent, by their names in request bodies
    (`temperature`, `top_k`, `max_tokens`, ...; the stop texts are `stop_sequences`). What was not sent is absent."""
    finish_reason: str | None = None
    model: str | None = None
    """The name of the model that answered, as the server gave it, else the name that was requested."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """Tokens as the server counted them: input_tokens, output_tokens and so on; what it did not count is absent."""
    tokens: SampledTokens | None = None
    """None when the server recorded none; never guessed."""
    release: str | None = None
    """Digest of the release that answered, "base" for the base model, None when unknown."""
    is_chat: bool = True
    """False for a text completion: the model was given the text as it is, without a chat template."""


@dataclass(frozen=True, slots=True)
class ToolRun:
    """A run of a tool, as its own span tells it; what the model was told of the result is in the messages."""

    span_id: str
    name: str
    id: str | None = None
    """Id of the model's tool call that it answers."""
    arguments: Any = None
    result: Any = None
    """None when it was not captured, or when the tool failed."""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class EditFigures:
    """How much of an answer a human kept, measured from both texts."""

    distance: float
    """Edit distance divided by the length of the longer text: 0 is unchanged, 1 shares nothing."""

    @property
    def accepted(self) -> bool:
        """Whether the human sent the answer unchanged."""
        return self.distance == 0

    @property
    def rewritten(self) -> bool:
        """Whether at least half of the text is the human's."""
        return self.distance >= 0.5


@dataclass(frozen=True, slots=True)
class OutcomeHistory:
    """The current outcome of one slot (a target, a name and a rater), and every outcome before it."""

    current: Outcome
    revisions: tuple[Outcome, ...]
    """Every record of the slot in order, `current` last."""
    received_ns: tuple[int, ...] = ()
    """When each of them was received."""
    span_id: str | None = None
    """The model call it is about; None for the whole episode, empty for a call whose content was not captured."""
    edit: EditFigures | None = None
    """None when nothing was edited, when it is unknown which answer was, or when the texts are too long to compare."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One trace as training material."""

    tenant: str
    trace_id: str
    task: str
    subject: str | None
    """Pseudonym of the user; None when the app gave none."""
    conversation: str | None
    started_ns: int
    calls: tuple[RecordedCall, ...]
    """Model calls in order of start."""
    outcomes: tuple[OutcomeHistory, ...] = ()
    """The outcomes that count; slots that were retracted are not among them."""
    retracted: tuple[OutcomeHistory, ...] = ()
    """The slots whose outcome was retracted, with what they held before."""
    tool_runs: tuple[ToolRun, ...] = ()
    """In order of start; empty when nothing recorded them, whatever tools the model called."""
