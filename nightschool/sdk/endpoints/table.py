"""The endpoints of an OpenAI-style server that are recorded, and the functions that understand each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nightschool.sdk.endpoints import chat, completions, responses


class StreamedAnswer(Protocol):
    """Puts the pieces of a streamed answer together."""

    @property
    def response_id(self) -> str | None:
        """The id of the answer, once it is known."""
        ...

    def add(self, chunk: Any) -> None:
        """Take the next piece, in order."""
        ...

    def response(self) -> Any:
        """The answer out of the pieces so far; None when nothing can be made of them."""
        ...


class Pick(Protocol):
    """Takes out of an answer what is recorded, as plain data; with `content=False` no texts."""

    def __call__(self, response: Any, *, content: bool) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint: what is taken from its requests and answers at once, and how attributes are made of that later."""

    path: str
    operation: str
    """`gen_ai.operation.name`."""
    fields: frozenset[str]
    """The parameters that are recorded when content is not."""
    fields_and_content: frozenset[str]
    """The parameters that are recorded when content is."""
    request_attributes: Callable[[Mapping[str, Any]], dict[str, chat.Attribute]]
    picked: Pick
    response_attributes: Callable[[Mapping[str, Any]], dict[str, chat.Attribute]]
    streamed: Callable[[], StreamedAnswer]


CHAT = Endpoint(
    "/chat/completions",
    "chat",
    chat.REQUEST_FIELDS,
    chat.REQUEST_FIELDS | chat.CONTENT_FIELDS,
    chat.request_attributes,
    chat.picked,
    chat.response_attributes,
    chat.StreamedChat,
)
COMPLETIONS = Endpoint(
    "/completions",
    "text_completion",
    completions.REQUEST_FIELDS,
    completions.REQUEST_FIELDS | completions.CONTENT_FIELDS,
    completions.request_attributes,
    completions.picked,
    completions.response_attributes,
    completions.StreamedCompletion,
)
RESPONSES = Endpoint(
    "/responses",
    "chat",
    responses.REQUEST_FIELDS,
    responses.REQUEST_FIELDS | responses.CONTENT_FIELDS,
    responses.request_attributes,
    responses.picked,
    responses.response_attributes,
    responses.StreamedResponse,
)
BY_PATH = {endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS, RESPONSES)}
